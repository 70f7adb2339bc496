"""The compiled path gives what the torch path gives."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slimse import ModelConfig, SlimDemucsConfig, SlimModel, Streamer, load
from slimse.networks.state import leaves
from slimse.router import RouterConfig
from slimse.runtimes.base import WEIGHTS, unavailable
from slimse.serving import StreamBatch

pytest.importorskip("numba", reason="the compiled path needs numba")

from numba import cfunc, types

from slimse.runtimes.numba import jit
from slimse.runtimes.numba.streams import pack
from slimse.runtimes.numba.vector import WIDENS

CONFIGS = {
    "small": SlimModel("small").config,
    "lstm": SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm", rnn_layers=2),
    "odd channels": SlimDemucsConfig(hidden=6, depth=3, growth=3, resample=2, rnn="lstm", ufs=(0.3, 0.5, 1.0)),
    "no resampling": SlimDemucsConfig(hidden=4, depth=2, kernel_size=6, stride=2, resample=1, groups=2),
    "no overlap": SlimDemucsConfig(hidden=4, depth=3, kernel_size=4, stride=4, resample=4, groups=1),
    "one level": SlimDemucsConfig(hidden=40, depth=1, groups=2),
    "normalising": ModelConfig(SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm"), level="signal"),
    "paper": SlimDemucsConfig(),
}


def random_model(config):
    """Biases start at zero, which would hide those that are added twice or not at all."""
    model = SlimModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.1)
    return model


def run_both(model, noisy, seed, **options):
    """Random chunks, each at a random width, through both paths; the outputs of every chunk."""
    generator = np.random.default_rng(seed)
    streamers = [Streamer(model, runtime=runtime, **options) for runtime in ("eager", "numba")]
    outputs, start = ([], []), 0
    while start < noisy.shape[-1]:
        size, uf = int(generator.integers(1, 3 * model.geometry.hop + 300)), float(generator.choice(model.ufs))
        for streamer, out in zip(streamers, outputs, strict=True):
            out.append(streamer.feed(noisy[..., start : start + size], uf))
        start += size
    for streamer, out in zip(streamers, outputs, strict=True):
        out.append(streamer.flush())
    return outputs


@pytest.mark.parametrize("name", CONFIGS)
def test_random_chunks_and_widths_equal_torch(name, relative_error):
    model = random_model(CONFIGS[name])
    hop, first = model.geometry.hop, model.geometry.first
    for seed, samples in enumerate((2, hop, first, first + 20 * hop + 5)):
        expected, actual = run_both(model, torch.randn(samples), seed)
        assert [len(out) for out in actual] == [len(out) for out in expected]
        assert relative_error(torch.cat(actual), torch.cat(expected)) < 1e-5


def test_weights_that_half_precision_holds_are_read_in_it_without_loss(relative_error):
    model = random_model(CONFIGS["small"])
    noisy = torch.randn(model.geometry.first + 5 * model.geometry.hop)
    assert pack(model).weights.dtype == np.float32
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" not in name:
                parameter.copy_(parameter.half())
    assert pack(model).weights.dtype == (np.uint16 if WIDENS else np.float32)
    assert pack(load()).weights.dtype == pack(model).weights.dtype
    expected, actual = run_both(model, noisy, 0)
    assert relative_error(torch.cat(actual), torch.cat(expected)) < 1e-5


@pytest.mark.parametrize("uf", SlimDemucsConfig().ufs)
@torch.no_grad()
def test_a_long_chunk_of_the_paper_preset_equals_offline(uf, relative_error):
    """Longer than one pass over the levels."""
    model = random_model(CONFIGS["paper"])
    noisy = torch.randn(70 * model.geometry.hop)
    streamer = Streamer(model, uf, runtime="numba")
    enhanced = torch.cat([streamer.feed(noisy), streamer.flush()])
    assert relative_error(enhanced, model(noisy[None, None], uf)[0, 0]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_whole_signals_at_any_widths_equal_torch(name, relative_error):
    """A frame's width in random order: a pass groups the positions of one width."""
    model = random_model(CONFIGS[name])
    model.runtime = "numba"
    for samples in (3, 70 * model.geometry.hop):
        noisy = torch.randn(2, 1, samples)
        ufs = torch.tensor(model.ufs)
        frames = model.geometry.frames(samples)
        mixed = ufs[torch.randint(len(ufs), (2, frames))]
        for uf in (0.5, mixed[:, 0], mixed):
            deviation = noisy[:, 0].std(1, keepdim=True) if model.config.level == "signal" else None
            expected = model.finish(noisy[:, 0], model.initial_state(2, deviation), uf)
            assert relative_error(model(noisy, uf)[:, 0], expected) < 1e-5
    with pytest.raises(ValueError, match="no gates"):
        model(noisy, torch.ones(2, frames, len(ufs)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_gradients_and_traces_take_the_torch_path(relative_error):
    model = random_model(CONFIGS["small"])
    assert model(torch.randn(1, 1, 300)).requires_grad
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 1, 300), check_trace=False)
        noisy = torch.randn(1, 1, 300)
        assert relative_error(traced(noisy), model(noisy)) < 1e-5


@torch.no_grad()
def test_threads_do_not_disturb_each_other():
    """They run at once, as the compiled code gives up Python's lock."""
    model = random_model(CONFIGS["paper"])
    signals = [torch.randn(1, 1, 20_000) for _ in range(4)]
    expected = [model(noisy, 0.25) for noisy in signals]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            actual = list(pool.map(torch.no_grad()(lambda noisy: model(noisy, 0.25)), signals))
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


CACHED = """
import os, sys, warnings
warnings.simplefilter("always")
import slimse.runtimes.numba.jit as jit
from numba import types
def of(digest):
    def double(number):
        _ = digest
        return 2 * number
    return double
call, address = jit.compiled(of(os.environ["DIGEST"]), types.int64, types.int64)
print(call(21), jit.origin())
jit.compiled(of(os.environ["DIGEST"]), types.int64, types.int64)
"""


def run_cached(folder, digest="one"):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "DIGEST": digest}
    # numba keeps code of files alone.
    script = folder.parent / "script.py"
    script.write_text(CACHED)
    return subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)


def test_changed_sources_and_damaged_caches_run_no_old_code(tmp_path):
    folder = tmp_path / "cache"
    assert run_cached(folder).stdout == "42 compiler\n"
    assert run_cached(folder).stdout == "42 cache\n"
    assert run_cached(folder, digest="two").stdout == "42 compiler\n"
    for kind in ("nbc", "nbi"):
        for path in folder.rglob(f"*.{kind}"):
            path.write_bytes(path.read_bytes()[:40])
        done = run_cached(folder)
        assert done.stdout == "42 no cache\n"
        assert done.stderr.count("RuntimeWarning") == 1
        assert "the cache of compiled code cannot be used" in done.stderr


def test_the_digest_holds_every_source(monkeypatch, tmp_path):
    for path in Path(jit.__file__).parent.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    digest = jit.sources.__wrapped__
    before = digest()
    assert before == jit.sources()
    (tmp_path / "router.py").write_text("")
    assert digest() != before


def test_a_full_disk_is_said_once(monkeypatch):
    def full(signature, *, cache=False, **options):
        if cache:
            raise OSError(28, "No space left on device")
        return cfunc(signature, **options)

    monkeypatch.setattr(jit, "cfunc", full)
    monkeypatch.setattr(jit, "_said", set())
    with pytest.warns(RuntimeWarning, match="No space left on device") as caught:
        calls = [jit.compiled(lambda number: number + 1, types.int64, types.int64)[0] for _ in range(2)]
    assert [call(1) for call in calls] == [2, 2]
    assert len(caught) == 1


@torch.no_grad()
def test_no_number_too_small_for_a_mantissa_stays_after_silence():
    model = random_model(CONFIGS["small"])
    streamer = Streamer(model, runtime="numba")
    before = torch.randn(2000)
    streamer.feed(1e-36 * before)
    streamer.feed(torch.full((2000,), 1e-41))
    streamer.feed(torch.zeros(4000))
    parts = leaves(streamer.state.model)
    assert all(bool(((part == 0) | (part.abs() >= torch.finfo(torch.float32).tiny)).all()) for part in parts)
    # The thread's own arithmetic is as before.
    assert float(torch.tensor(1e-39) * 0.5) != 0


@pytest.mark.parametrize("config", [CONFIGS["no resampling"], SlimDemucsConfig(hidden=12, depth=1, groups=2)])
def test_streams_of_a_batch_whose_groups_fill_no_vector(config, relative_error):
    """What one stream's GRU gathers, or writes behind its units, must not reach the next stream."""
    model = random_model(config)
    sound = torch.randn(3, 12 * model.geometry.hop)
    outputs = []
    for runtime in ("eager", "numba"):
        batch = StreamBatch(model, 3, runtime=runtime)
        slots = [batch.join(uf) for uf in (0.125, 1.0, 0.25)]
        ticks = [batch.tick(part) for part in sound.split(model.geometry.hop, 1)]
        rows = [[out[slot, : ready[slot]] for out, ready in ticks] + [batch.leave(slot)] for slot in slots]
        outputs.append(torch.cat([torch.cat(row) for row in rows]))
    assert relative_error(outputs[1], outputs[0]) < 1e-5


@pytest.mark.parametrize("shared", [False, True])
def test_chosen_ufs_equal_torch(shared, relative_error):
    """A budget and a given UF take turns; many frames at once, few, and those at the end."""
    # With this seed it chooses each of the widths several times.
    torch.manual_seed(10)
    router = RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4)
    model = random_model(replace(CONFIGS["small"], router=router))
    # In the middle of the widths, and so sensitive that frames and streams differ.
    model.router.bias_width.data.fill_(-1.5)
    model.router.input.weight.data.mul_(10)
    model.router.output.weight.data.normal_(0, 2)
    hop, chosen = model.geometry.hop, set()
    noisy = torch.randn(2, model.geometry.first + 30 * hop + 5) * torch.tensor([[1.0], [0.1]])
    noisy *= torch.rand(len(noisy[0]) // 10 + 1).repeat_interleave(10)[: len(noisy[0])]
    streamers = [Streamer(model, budget=0.5, streams=2, shared=shared, runtime=r) for r in ("eager", "numba")]
    for size, options in ((500, {}), (20, {}), (100, {"uf": 1.0}), (70, {"budget": 0.25}), (4 * hop, {})):
        part, noisy = noisy[:, :size], noisy[:, size:]
        expected, actual = (streamer.feed(part, **options) for streamer in streamers)
        assert torch.equal(streamers[0].ufs, streamers[1].ufs)
        assert relative_error(actual, expected) < 1e-5
        chosen |= set(streamers[0].ufs.flatten().tolist()) if "uf" not in options else set()
    assert streamers[0].ufs.shape[1] >= 3
    assert chosen == set(model.ufs)
    expected, actual = (streamer.flush() for streamer in streamers)
    assert torch.equal(streamers[0].ufs, streamers[1].ufs)
    assert relative_error(actual, expected) < 1e-5
    model.runtime = "numba"
    with torch.no_grad():
        whole = torch.randn(2, 1, 700) * torch.rand(70).repeat_interleave(10)
        ufs = model.route(whole, 0.25)
        actual, model.runtime = model(whole, budget=0.25), "eager"
        assert torch.equal(ufs, model.route(whole, 0.25))
        assert relative_error(actual, model(whole, budget=0.25)) < 1e-5


def test_several_streams_and_given_levels(relative_error):
    noisy = torch.randn(2, 3000)
    for name, options in (("small", {}), ("lstm", {}), ("normalising", {"input_std": torch.tensor([[0.5], [2.0]])})):
        expected, actual = run_both(random_model(CONFIGS[name]), noisy, 0, streams=2, **options)
        assert relative_error(torch.cat(actual, 1), torch.cat(expected, 1)) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_moves_between_runtimes(name, relative_error):
    """At the start, inside the first frame, and later."""
    model = random_model(CONFIGS[name])
    noisy = torch.randn(model.geometry.first + 9 * model.geometry.hop + 3)
    whole = Streamer(model, 0.5, runtime="eager")
    expected = torch.cat([whole.feed(noisy), whole.flush()])
    for cuts in (
        (0, 10),
        (model.geometry.first - 1, model.geometry.first),
        (model.geometry.first + 2 * model.geometry.hop + 1, -9),
    ):
        runtimes, outputs, state = ("numba", "eager", "numba"), [], None
        pieces = noisy[: cuts[0]], noisy[cuts[0] : cuts[1]], noisy[cuts[1] :]
        for runtime, piece in zip(runtimes, pieces, strict=True):
            streamer = Streamer(model, 0.5, runtime=runtime)
            if state is not None:
                streamer.state = state
            outputs.append(streamer.feed(piece))
            state = streamer.state
        # The normalising model estimates its level per chunk, so its chunks must be the same.
        if model.config.level == "signal":
            whole = Streamer(model, 0.5, runtime="eager")
            expected = torch.cat([*(whole.feed(piece) for piece in pieces), whole.flush()])
        assert relative_error(torch.cat([*outputs, streamer.flush()]), expected) < 1e-5


def test_nothing_is_written_to_a_saved_state():
    model = random_model(CONFIGS["small"])
    streamer = Streamer(model, runtime="numba")
    streamer.feed(torch.randn(1000))
    saved, before = streamer.state, torch.cat([part.flatten() for part in leaves(streamer.state.model)])
    streamer.feed(torch.randn(1000))
    assert torch.equal(torch.cat([part.flatten() for part in leaves(saved.model)]), before)


def test_float16_and_int8_weights_are_close(relative_error):
    model = random_model(CONFIGS["paper"])
    noisy = torch.randn(20 * model.geometry.hop)
    exact, half, byte = (Streamer(model, runtime="numba", weights=kind).feed(noisy) for kind in WEIGHTS)
    assert 1e-6 < relative_error(half, exact) < 2e-3
    assert relative_error(half, exact) < relative_error(byte, exact) < 5e-2


@torch.no_grad()
def test_nan_and_infinity_pass_through_whole_signals():
    model = random_model(CONFIGS["small"])
    model.runtime = "numba"
    for value in (float("nan"), float("inf")):
        noisy = torch.randn(1, 1, 2000)
        noisy[..., 1000] = value
        expected, actual = model.finish(noisy[0], model.initial_state())[0], model(noisy)[0, 0]
        # Torch filters in blocks, padded with zeros times NaN, so its NaNs begin a little earlier.
        assert not (actual.isnan() & ~expected.isnan()).any()
        assert actual[-model.geometry.hop :].isnan().all()


def test_new_weights_are_seen_by_new_streamers(relative_error):
    model = random_model(CONFIGS["small"])
    noisy = torch.randn(1000)
    old = Streamer(model, runtime="numba").feed(noisy)
    with torch.no_grad():
        model.network.decoder[0].conv_weight.mul_(2)
    new = Streamer(model, runtime="numba").feed(noisy)
    assert relative_error(new, Streamer(model, runtime="eager").feed(noisy)) < 1e-5
    assert relative_error(new, old) > 0.1


def test_a_model_made_in_inference_mode(relative_error):
    noisy = torch.randn(1, 1, 700)
    with torch.inference_mode():
        model = random_model(CONFIGS["one level"])
        for _ in range(2):
            actual, model.runtime = model(noisy, 0.5), "eager"
            assert relative_error(actual, model(noisy, 0.5)) < 1e-5
            model.runtime = "auto"
            for parameter in model.parameters():
                parameter.mul_(1.1)


def test_a_runtime_that_cannot_run_is_refused():
    double = SlimModel("small").double()
    assert Streamer(double).runtime == "eager"
    assert Streamer(SlimModel("small")).runtime == "numba"
    with pytest.raises(ValueError, match=r"'numba' cannot run here: the model is in torch.float64"):
        Streamer(double, runtime="numba")
    with pytest.raises(ValueError, match=r"runtime = 'tensorflow': expected one of"):
        Streamer(double, runtime="tensorflow")
    with pytest.raises(ValueError, match="weights = 'int8': expected None"):
        Streamer(double, weights="int8")
    with pytest.raises(ValueError, match="weights = 'int4': expected one of"):
        Streamer(SlimModel("small"), weights="int4")
    whole = SlimModel(SlimDemucsConfig(hidden=4, depth=1, rnn="lstm", causal=False))
    assert "bidirectional" in unavailable("numba", whole, "stream")


def test_without_numba_torch_runs():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import slimse, torch\n"
        "streamer = slimse.Streamer(slimse.SlimModel('small'))\n"
        "streamer.feed(torch.zeros(500)); print(streamer.runtime)\n"
        "try: slimse.Streamer(streamer.model, runtime='numba')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("eager\nruntime = 'numba' cannot run here: numba cannot be imported")
