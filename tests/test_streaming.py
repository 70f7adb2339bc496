"""Streaming gives what the offline pass gives, whatever the chunks and the widths."""

import copy

import numpy as np
import pytest
import soundfile
import torch
from causal_conv import ConvConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from slimse import ModelConfig, SlimDemucsConfig, SlimModel, Streamer
from slimse.networks.state import leaves
from slimse.testing import run_frames, run_in_chunks, tiny_model

SMALL = SlimModel("small").eval()
CONFIGS = {
    "small": SMALL.config,
    "lstm": SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm", rnn_layers=2),
    "no resampling": SlimDemucsConfig(hidden=4, depth=2, kernel_size=6, stride=2, resample=1, groups=2),
    "no overlap": SlimDemucsConfig(hidden=4, depth=3, kernel_size=4, stride=4, resample=4, groups=1),
    "conv": ConvConfig(),
}
MODELS = {"demucs": SMALL, "conv": tiny_model(ConvConfig())}
UFS = st.sampled_from(SMALL.ufs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 1500),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    uf=UFS,
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("network", MODELS)
@torch.no_grad()
def test_any_chunks_equal_offline(network, samples, sizes, uf, seed):
    model = MODELS[network]
    noisy = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    streamed = run_in_chunks(Streamer(model, uf), noisy, sizes)
    offline = model(noisy[None, None], uf)[0, 0]
    assert streamed.shape == noisy.shape
    assert (streamed - offline).norm() <= 1e-5 * offline.norm()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(samples=st.integers(1, 1200), seed=st.integers(0, 1000))
@pytest.mark.parametrize("network", MODELS)
@torch.no_grad()
def test_a_random_width_per_frame_equals_offline(network, samples, seed):
    model = MODELS[network]
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, samples, generator=generator)
    ufs = torch.tensor(model.ufs)[torch.randint(4, (2, model.geometry.frames(samples)), generator=generator)]
    streamed = run_frames(model, noisy, ufs)
    offline = model(noisy[:, None], ufs)[:, 0]
    assert streamed.shape == noisy.shape
    assert (streamed - offline).norm() <= 1e-5 * offline.norm()
    # A whole signal's error can hide in its loudest part: the ends must agree by themselves.
    for part in (slice(0, 40), slice(-40, None)):
        assert (streamed[:, part] - offline[:, part]).norm() <= 1e-4 * offline[:, part].norm()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_other_shapes_stream_too(name, relative_error):
    model = SlimModel(CONFIGS[name]).eval()
    for samples in (
        model.geometry.first - 1,
        model.geometry.first,
        model.geometry.first + 5 * model.geometry.hop,
        1003,
    ):
        noisy = torch.randn(2, samples)
        ufs = torch.tensor(model.ufs)[torch.randint(4, (2, model.geometry.frames(samples)))]
        offline = model(noisy[:, None], ufs)[:, 0]
        assert relative_error(run_frames(model, noisy, ufs), offline) < 1e-5
        uniform = run_in_chunks(Streamer(model, 0.5, streams=2), noisy, [model.geometry.hop])
        assert relative_error(uniform, model(noisy[:, None], 0.5)[:, 0]) < 1e-5


@torch.no_grad()
def test_paper_preset_on_speech(shared, relative_error):
    path = sorted((shared / "data" / "valid" / "mixed" / "noisy").iterdir())[1]
    noisy = torch.from_numpy(soundfile.read(path, dtype="float32", frames=24_000)[0])
    model = SlimModel("paper").eval()
    ufs = torch.tensor(model.ufs)[torch.randint(4, (1, model.geometry.frames(len(noisy))))]
    offline = model(noisy[None, None], ufs)[0]
    assert relative_error(run_frames(model, noisy[None], ufs)[0], offline[0]) < 1e-5
    for uf in model.ufs:
        streamed = run_in_chunks(Streamer(model, uf), noisy, [160, 1, 777])
        assert relative_error(streamed, model(noisy[None, None], uf)[0, 0]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_latency_is_exact(name):
    """By the clock of samples fed, and by the reach of an impulse."""
    model = SlimModel(CONFIGS[name]).eval()
    samples = model.geometry.first + 8 * model.geometry.hop
    noisy = torch.randn(samples)
    streamer, emitted, worst = Streamer(model), 0, 0
    for index in range(samples):
        ready = streamer.feed(noisy[index : index + 1]).shape[0]
        if ready:
            worst = max(worst, index - emitted)
            emitted += ready
    assert worst == model.geometry.latency == streamer.latency

    # A change at sample p leaves alone all outputs before p - latency.
    before = model(noisy[None, None])[0, 0]
    for position in (
        model.geometry.first + 2 * model.geometry.hop,
        model.geometry.first + 2 * model.geometry.hop + model.geometry.hop // 2,
    ):
        changed = noisy.clone()
        changed[position] += 10
        touched = (model(changed[None, None])[0, 0] != before).nonzero().flatten()
        assert position - model.geometry.latency <= int(touched[0]) < position


@torch.no_grad()
def test_paper_latency_in_milliseconds():
    assert 1000 * SlimModel("paper").geometry.latency / 16_000 == 47.6875


@torch.no_grad()
def test_state_is_a_value(tmp_path):
    noisy = torch.randn(1500)
    streamer = Streamer(SMALL, 0.5)
    head = streamer.feed(noisy[:700])
    saved = copy.deepcopy(streamer.state)
    torch.save(streamer.state, tmp_path / "state.pt")
    tails = []
    for state in (saved, torch.load(tmp_path / "state.pt")):
        other = Streamer(SMALL, 0.5)
        other.state = state
        tails.append(torch.cat([other.feed(noisy[700:]), other.flush()]))
    tail = torch.cat([streamer.feed(noisy[700:]), streamer.flush()])
    assert torch.equal(tails[0], tail)
    assert torch.equal(tails[1], tail)
    assert len(head) + len(tail) == 1500
    # It holds what a frame needs, not the history.
    assert (tmp_path / "state.pt").stat().st_size < 200_000

    state = SMALL.initial_state(1)
    _, state = SMALL.step(noisy[None, : SMALL.geometry.first], state)
    kept = copy.deepcopy(state)
    SMALL.step(noisy[None, : SMALL.geometry.hop], state, 0.125)
    assert all(torch.equal(old, new) for old, new in zip(leaves(kept), leaves(state), strict=True))


@torch.no_grad()
def test_state_sizes_stay_constant():
    state = SMALL.initial_state(3)
    sizes = set()
    _, state = SMALL.step(torch.randn(3, SMALL.geometry.first), state)
    for frames in (1, 3, 1, 2):
        _, state = SMALL.step(torch.randn(3, frames * SMALL.geometry.hop), state)
        sizes.add(tuple(part.shape for part in leaves(state)))
    assert len(sizes) == 1


@torch.no_grad()
def test_batched_streams_equal_single_ones(relative_error):
    noisy = torch.randn(3, 1000)
    ufs = torch.tensor([0.125, 1.0, 0.5])
    together = run_in_chunks(Streamer(SMALL, ufs, streams=3), noisy, [130, 7])
    for stream, uf in enumerate(ufs.tolist()):
        alone = run_in_chunks(Streamer(SMALL, uf), noisy[stream], [130, 7])
        assert relative_error(together[stream], alone) < 1e-5


@torch.no_grad()
def test_width_can_change_at_every_feed(relative_error):
    noisy, hop, first = torch.randn(900), SMALL.geometry.hop, SMALL.geometry.first
    ufs = torch.tensor(SMALL.ufs)[torch.randint(4, (1, SMALL.geometry.frames(900)))]
    streamer, outputs = Streamer(SMALL), []
    outputs.append(streamer.feed(noisy[:first], ufs[0, 0].item()))
    frame = 1
    while first + frame * hop <= 900:
        outputs.append(streamer.feed(noisy[first + (frame - 1) * hop : first + frame * hop], ufs[0, frame].item()))
        frame += 1
    outputs.append(streamer.feed(noisy[first + (frame - 1) * hop :]))
    outputs.append(streamer.flush(ufs[:, frame:]))
    assert relative_error(torch.cat(outputs), SMALL(noisy[None, None], ufs)[0, 0]) < 1e-5


@torch.no_grad()
def test_normalising_model_with_the_deviation_given(relative_error):
    model = SlimModel(ModelConfig(SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm"), level="signal")).eval()
    noisy = 0.05 * torch.randn(1200)
    given = run_in_chunks(Streamer(model, input_std=float(noisy.std())), noisy, [100])
    assert relative_error(given, model(noisy[None, None])[0, 0]) < 1e-5
    # Without it the deviation is that of the past: no equality, but the same order.
    running = run_in_chunks(Streamer(model), noisy, [100])
    assert 1e-5 < relative_error(running, given) < 0.5
    with pytest.raises(ValueError, match=r"input_std = 0\.1 for a model of level 'running'"):
        Streamer(SMALL, input_std=0.1)


def test_numpy_and_number_formats_come_back_as_they_went_in():
    streamer = Streamer(SMALL)
    out = streamer.feed(np.zeros(500, dtype=np.float64))
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float64
    rest = streamer.flush()
    assert isinstance(rest, np.ndarray)
    assert len(out) + len(rest) == 500
    assert Streamer(SMALL, streams=2).feed(torch.zeros(2, 500, dtype=torch.float16)).dtype == torch.float16


def test_empty_streams():
    streamer = Streamer(SMALL)
    assert streamer.flush().shape == (0,)
    assert streamer.feed(torch.zeros(0)).shape == (0,)
    assert streamer.flush().shape == (0,)


@pytest.mark.parametrize("runtime", ["eager", "numba"])
def test_a_sample_that_is_not_finite_is_refused_and_nothing_is_lost(runtime):
    model = SlimModel("small").eval()
    torch.manual_seed(0)
    x, streamer = torch.randn(2, 500), Streamer(model, streams=2, runtime=runtime)
    out = [streamer.feed(x[:, :300])]
    bad = x.clone()
    bad[1, 7] = float("inf")
    with pytest.raises(ValueError, match="holds inf at sample 7 of stream 1"):
        streamer.feed(bad)
    with pytest.raises(ValueError, match="holds nan at sample 2: expected finite"):
        Streamer(model, runtime=runtime).feed(np.array([0, 1, np.nan], np.float32))
    with pytest.raises(ValueError, match=r"holds 1e\+30 at sample 0: expected finite samples of at most 1e\+06"):
        Streamer(model, runtime=runtime).feed(np.full(9, 1e30, np.float32))
    out += [streamer.feed(x[:, 300:]), streamer.flush()]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(out, dim=1), model(x.unsqueeze(1), 1.0)[:, 0], atol=1e-5, rtol=0)


def test_bad_input_is_refused_and_nothing_is_lost():
    streamer = Streamer(SMALL)
    streamer.feed(torch.ones(10))
    for chunk in (torch.zeros(2, 5), torch.zeros(5).int(), np.zeros(5, dtype=np.int16)):
        with pytest.raises(ValueError, match=r"expected floating \[n\]"):
            streamer.feed(chunk)
    with pytest.raises(ValueError, match=r"\(0.125, 0.25, 0.5, 1.0\)"):
        streamer.feed(torch.zeros(5), uf=0.3)
    assert streamer.flush().shape == (10,)
    with pytest.raises(ValueError, match=r"\(0.125, 0.25, 0.5, 1.0\)"):
        Streamer(SMALL, 0.7)
    with pytest.raises(ValueError, match="bidirectional"):
        Streamer(SlimModel(SlimDemucsConfig(hidden=4, depth=1, rnn="lstm", causal=False)))
    with pytest.raises(ValueError, match="streams = 0"):
        Streamer(SMALL, streams=0)
    with pytest.raises(ValueError, match="a multiple of 32"):
        SMALL.step(torch.zeros(1, 131), SMALL.initial_state(1))
    with pytest.raises(ValueError, match=r"state.network.up\[0\] has shape \(1, 55\).* expected \(2, 55\)"):
        Streamer(SMALL, streams=2).state = streamer.state
