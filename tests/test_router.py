"""The router decides from what a stream has, alike offline and live, within the budget's meaning."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from causal_conv import ConvConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import slimse
from slimse import PRESETS, SlimModel, Streamer
from slimse.cli import app
from slimse.profiling import profile
from slimse.router import RouterConfig
from slimse.testing import tiny_model

MODELS = {"demucs": tiny_model("small", router=True), "conv": tiny_model(ConvConfig(), router=True, seed=1)}
MODEL = MODELS["demucs"]
NOISE = 0.05 * torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    """A model of each network, with a router that uses all of its widths on noise."""
    return MODELS[request.param]


def stream(streamer, noisy, sizes, budgets=(None,)):
    """Output and UFs of ``noisy`` fed in chunks of the given sizes, with the given budgets by turns."""
    outputs, ufs, start, turn = [], [], 0, 0
    while start < noisy.shape[-1]:
        size = sizes[turn % len(sizes)]
        outputs.append(streamer.feed(noisy[..., start : start + size], budget=budgets[turn % len(budgets)]))
        ufs.append(streamer.ufs)
        start, turn = start + size, turn + 1
    outputs.append(streamer.flush())
    return torch.cat(outputs, -1), torch.cat([*ufs, streamer.ufs], 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 1500),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    budget=st.floats(0.125, 1.0),
    seed=st.integers(0, 1000),
)
def test_streaming_decides_and_sounds_as_offline(model, samples, sizes, budget, seed):
    noisy = 0.05 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    out, ufs = stream(Streamer(model, budget=budget), noisy, sizes)
    assert torch.equal(ufs, model.route(noisy[None, None], budget))
    offline = model(noisy[None, None], budget=budget)[0, 0]
    assert (out - offline).norm() <= 1e-5 * offline.norm() + 1e-7


def test_paper_preset_streams_as_offline():
    model = tiny_model("dynamic", router=True, seed=2)
    torch.manual_seed(0)
    noisy = 0.05 * torch.randn(6000) * torch.logspace(-3, 1, 6000)
    out, ufs = stream(Streamer(model, budget=0.4), noisy, [700, 1, 333])
    assert len(ufs.unique()) > 1
    assert torch.equal(ufs, model.route(noisy[None, None], 0.4))
    offline = model(noisy[None, None], budget=0.4)[0, 0]
    assert (out - offline).norm() <= 1e-5 * offline.norm()


def test_auto_is_the_routed_ufs(model):
    ufs = model.route(NOISE[:, None], 0.3)
    assert ufs.shape == (3, model.geometry.frames(4000))
    assert len(ufs.unique()) > 1
    assert torch.equal(model(NOISE[:, None], budget=0.3), model(NOISE[:, None], ufs))


def test_every_stream_has_its_own_budget(model):
    budgets = torch.tensor([0.15, 0.3, 0.9])
    together = model.route(NOISE[:, None], budgets)
    alone = torch.cat([model.route(NOISE[i, None, None], float(b)) for i, b in enumerate(budgets)])
    assert torch.equal(together, alone)
    out, ufs = stream(Streamer(model, budget=budgets, streams=3), NOISE, [500])
    assert torch.equal(ufs, together)
    assert out.shape == NOISE.shape


def test_the_budget_may_change_at_any_frame(model):
    noisy, first, hop = NOISE[0], model.geometry.first, model.geometry.hop
    sizes = [first + 20 * hop, 4000]
    _, ufs = stream(Streamer(model, budget=0.2), noisy, sizes, [None, 0.9])
    low, high = (model.route(noisy[None, None], budget) for budget in (0.2, 0.9))
    assert torch.equal(ufs[:, :21], low[:, :21])
    assert not torch.equal(ufs[:, 21:], low[:, 21:])
    # What was said before is remembered, and fades.
    assert (ufs[:, -20:] == high[:, -20:]).float().mean() > 0.5


def test_a_budget_takes_over_from_a_fixed_width(model):
    streamer = Streamer(model, 0.5)
    streamer.feed(NOISE[0, :1000])
    assert streamer.ufs.unique().tolist() == [0.5]
    streamer.feed(NOISE[0, 1000:], budget=0.3)
    assert len(streamer.ufs.unique()) > 1


def test_a_saved_stream_goes_on_as_it_would_have(model):
    streamer = Streamer(model, budget=0.3)
    streamer.feed(NOISE[0, :1500])
    state = streamer.state
    rest = torch.cat([streamer.feed(NOISE[0, 1500:]), streamer.flush()])
    again = Streamer(model, budget=0.3)
    again.state = state
    assert torch.equal(torch.cat([again.feed(NOISE[0, 1500:]), again.flush()]), rest)


def test_a_decision_rests_on_samples_that_are_there(model):
    noisy = NOISE[:1, None].clone()
    before = model.route(noisy, 0.3)
    frame = 30
    noisy[:, :, model.geometry.first + frame * model.geometry.hop :] *= -30
    after = model.route(noisy, 0.3)
    assert torch.equal(before[:, : frame + 1], after[:, : frame + 1])
    assert not torch.equal(before, after)


def test_channels_share_a_decision(model):
    streamer = Streamer(model, budget=0.3, streams=3, shared=True)
    _, ufs = stream(streamer, NOISE, [300])
    assert torch.equal(ufs[0], ufs[1])
    assert torch.equal(ufs[0], ufs[2])
    # A channel of opposite sign must not silence the other for the router.
    pair = torch.stack([NOISE[0], -NOISE[0]])
    assert slimse.enhance(pair, 16_000, budget=0.3, model=model).shape == pair.shape


def test_first_weights_share_by_the_budget():
    router = SlimModel("dynamic").requires_grad_(False).router
    for budget in (0.15, 0.3, 0.6, 0.9):
        weights = router.knot_weights(torch.tensor([budget]))
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
        assert float((weights @ router.bias_width).exp2()) == pytest.approx(budget, rel=0.01)


def test_ufs_are_taken_in_their_order():
    """What wants more takes the next UF, from the middle in octaves on."""
    router = SlimModel("dynamic").requires_grad_(False).router
    router.output.weight.zero_()
    chosen = []
    for wanted in (-9.0, -2.51, -2.49, -1.51, -1.49, -0.51, -0.49, 5.0):
        router.bias_width.fill_(wanted)
        logits, _ = router.logits(torch.zeros(1, 2, 48), torch.tensor([0.3]), torch.zeros(1, 64))
        assert logits.shape == (1, 2, 4)
        chosen.append(int(logits[0, 0].argmax()))
    assert chosen == [0, 0, 1, 1, 2, 2, 3, 3]


def test_cost_is_small_and_printed():
    model = SlimModel("dynamic")
    result = profile(model)
    assert result.router_macs_per_sample < 0.05 * result.widths[0].macs_per_sample
    # One window per 32 samples, then the recurrent layer, the width, two table rows and the logits per frame of 256.
    by_hand = 48 * 128 / 32 + (3 * 64 * 48 + 3 * 64 + 64 + 2 * (3 * 64 + 1) + 4) / 256
    assert result.router_macs_per_sample == pytest.approx(by_hand)
    assert result.widths == profile(SlimModel("paper")).widths
    half = result.macs_per_sample(torch.tensor([0.125, 1.0]))
    costs = [result.widths[0].macs_per_sample, result.widths[-1].macs_per_sample]
    assert half == pytest.approx(sum(costs) / 2 + by_hand)
    printed = CliRunner().invoke(app, ["profile", "dynamic"]).output
    assert "router" in printed
    assert f"+{by_hand:,.0f}" in printed


def test_weights_with_and_without_a_router_are_read(model, tmp_path):
    for name, saved in (("with", model), ("without", SlimModel(model.config.network))):
        slimse.save(saved, tmp_path / f"{name}.safetensors")
        again = slimse.load(tmp_path / f"{name}.safetensors")
        assert again.config == saved.config
    again = slimse.load(tmp_path / "with.safetensors")
    assert torch.equal(again.route(NOISE[:, None], 0.3), model.route(NOISE[:, None], 0.3))
    assert torch.equal(again(NOISE[:, None], 0.25), model(NOISE[:, None], 0.25))


def test_bundled_names_win_over_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "dynamic-v1").mkdir()
    slimse.save(SlimModel("small"), tmp_path / "dynamic-v1" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert slimse.load("dynamic-v1").config == PRESETS["dynamic"]
    assert slimse.load("./dynamic-v1").config == PRESETS["small"]
    for name in ("paper", "no.safetensors"):
        with pytest.raises(FileNotFoundError, match=rf"no weights '{name}': .* one of \['dynamic-v1'\]"):
            slimse.load(name)


def test_ufs_may_be_lists_and_arrays(model):
    frames = model.geometry.frames(4000)
    drawn = np.random.default_rng(0).choice(model.ufs, size=(3, frames))
    expected = model(NOISE[:, None], torch.from_numpy(drawn))
    assert torch.equal(model(NOISE[:, None], drawn), expected)
    assert torch.equal(model(NOISE[:, None], drawn.tolist()), expected)
    assert torch.equal(model(NOISE[:, None], np.float32(0.5)), model(NOISE[:, None], 0.5))
    assert torch.equal(
        model.route(NOISE[:, None], [0.2, 0.4, 0.8]), model.route(NOISE[:, None], np.array([0.2, 0.4, 0.8]))
    )
    for ufs in ([0.25, 0.5, 1.0], np.array([0.25, 0.5, 1.0])):
        streamer = Streamer(model, ufs, streams=3)
        streamer.feed(NOISE.numpy(), ufs)
        assert streamer.ufs[:, 0].tolist() == [0.25, 0.5, 1.0]
    with pytest.raises(ValueError, match="not one of this model's widths"):
        model(NOISE[:, None], [0.5, 0.3, 1.0])


def test_load_takes_a_folder_and_gives_a_model_to_train(tmp_path):
    slimse.save(MODEL, tmp_path / "model.safetensors")
    model = slimse.load(tmp_path, trainable=True)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(NOISE[:, None], 0.5).square().mean().backward()
    assert model.network.encoder[0].conv_weight.grad.norm() > 0
    assert not slimse.load(tmp_path).training
    assert not any(parameter.requires_grad for parameter in slimse.load(tmp_path).parameters())
    slimse.save(MODEL, tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="holds 2"):
        slimse.load(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SlimModel("small")(NOISE[:, None], budget=0.3), "no router"),
        (lambda: SlimModel("small").route(NOISE[:, None], 0.3), "no router"),
        (lambda: Streamer(SlimModel("small"), budget=0.3), "no router"),
        (lambda: MODEL(NOISE[:, None], budget="high"), "budget = 'high'"),
        (lambda: MODEL(NOISE[:, None], 0.5, 0.3), r"0\.5 with budget = 0\.3"),
        (lambda: MODEL.route(NOISE[:, None], 0.1), r"budget = 0\.1: expected a mean UF from 0\.125 to 1"),
        (lambda: MODEL.route(NOISE[:, None], float("nan")), "budget = nan"),
        (lambda: MODEL.route(NOISE[:, None], torch.ones(2)), r"shape \(2,\): expected a number or \[3\]"),
        (lambda: RouterConfig(units=0), "units = 0"),
        (lambda: RouterConfig(kernel_size=8), "kernel_size = 8"),
        (lambda: SlimModel(replace(PRESETS["small"], router=RouterConfig(stride=24))), "stride = 24"),
        (lambda: replace(PRESETS["dns48"], router=RouterConfig()), "level = .signal."),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_enhance_command_takes_a_budget_or_a_word(tmp_path):
    slimse.save(MODEL, tmp_path / "router.safetensors")
    slimse.save(SlimModel("small"), tmp_path / "none.safetensors")
    soundfile.write(tmp_path / "in.wav", NOISE[:2].numpy().T, 16_000)

    def run(weights, name, *options):
        target = tmp_path / f"{name}.wav"
        arguments = ["enhance", str(tmp_path / "in.wav"), "-o", str(target), "--weights", str(tmp_path / weights)]
        return CliRunner().invoke(app, [*arguments, *options]), target

    for name, options in (("budget", ("--budget", "0.3")), ("word", ("--quality", "balanced"))):
        result, target = run("router.safetensors", name, *options)
        assert result.exit_code == 0, result.output
        expected = slimse.enhance(NOISE[:2], 16_000, budget=0.3, model=MODEL)
        assert np.abs(soundfile.read(target)[0].T - expected.numpy()).max() < 1e-4
    for weights, options, message in (
        ("none.safetensors", ("--quality", "low"), "no router"),
        ("router.safetensors", ("--uf", "0.5", "--budget", "0.3"), "exclude each other"),
        ("router.safetensors", ("--budget", "2"), "budget = 2.0"),
    ):
        result, target = run(weights, "bad", *options)
        assert result.exit_code == 2
        assert message in result.output
        assert not target.exists()
