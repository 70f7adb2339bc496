"""The network offline: widths agree, shapes, types, costs, reference weights, extraction."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import slimse
from slimse import PRESETS, ModelConfig, SlimDemucsConfig, SlimModel, Streamer, load_denoiser
from slimse.profiling import profile
from slimse.testing import assert_close, run_in_chunks

PUBLISHED = {0.125: 8_944, 0.25: 15_664, 0.5: 29_104, 1.0: 55_985}
LSTM = ModelConfig(SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm", rnn_layers=2), level="signal")
VARIANTS = {
    "gru": PRESETS["small"],
    "lstm": LSTM,
    "wide kernel": SlimDemucsConfig(hidden=4, depth=2, kernel_size=6, stride=2, resample=1, groups=2),
    "no overlap": SlimDemucsConfig(hidden=4, depth=2, kernel_size=4, stride=4, resample=4, groups=1),
    "other widths": SlimDemucsConfig(hidden=6, depth=2, ufs=(0.3, 0.6, 1.0), groups=3),
}


@pytest.fixture(params=VARIANTS)
def model(request):
    return SlimModel(VARIANTS[request.param]).eval()


def random_ufs(model, batch, frames):
    return torch.tensor(model.ufs)[torch.randint(len(model.ufs), (batch, frames))]


@pytest.mark.parametrize("samples", [1, 2, 31, 255, 1001])
def test_any_length_comes_back_as_long(model, samples):
    noisy = torch.randn(2, 1, samples)
    enhanced = model(noisy, 0.6 if 0.6 in model.ufs else 0.25)
    assert enhanced.shape == noisy.shape
    assert enhanced.isfinite().all()


@torch.no_grad()
def test_uniform_ragged_and_soft_agree(model, relative_error):
    noisy = torch.randn(3, 1, 2000)
    frames = model.geometry.frames(2000)
    for choice, uf in enumerate(model.ufs):
        uniform = model(noisy, uf)
        gates = torch.zeros(3, frames, len(model.ufs))
        gates[..., choice] = 1
        assert relative_error(model(noisy, torch.full((3,), uf)), uniform) < 1e-5
        assert relative_error(model(noisy, torch.full((3, frames), uf)), uniform) < 1e-5
        assert relative_error(model(noisy, gates), uniform) < 1e-5


@torch.no_grad()
def test_mixed_widths_agree(model, relative_error):
    noisy = torch.randn(3, 1, 2000)
    ufs = random_ufs(model, 3, model.geometry.frames(2000))
    ragged = model(noisy, ufs)
    gates = torch.nn.functional.one_hot(model.ufs.indices(ufs), len(model.ufs)).float()
    assert relative_error(model(noisy, gates), ragged) < 1e-5
    for item in range(3):
        assert relative_error(model(noisy[item : item + 1], ufs[item : item + 1]), ragged[item : item + 1]) < 1e-5
    per_item = torch.tensor([model.ufs[0], model.ufs[-1], model.ufs[0]])
    mixed = model(noisy, per_item)
    for item, uf in enumerate(per_item.tolist()):
        uf = min(model.ufs, key=lambda known, uf=uf: abs(known - uf))
        assert relative_error(mixed[item : item + 1], model(noisy[item : item + 1], uf)) < 1e-5


def test_widths_differ_and_each_has_its_gradient():
    model = SlimModel("small")
    noisy = torch.randn(1, 1, 500)
    narrow, wide = model(noisy, 0.125), model(noisy, 1.0)
    assert (narrow - wide).abs().max() > 1e-3 * wide.abs().max()
    narrow.square().sum().backward()
    weight = model.network.encoder[2].conv_weight
    k = model.ufs.channels(0.125, weight.shape[0])
    assert weight.grad[:k].abs().sum() > 0
    assert weight.grad[k:].abs().sum() == 0


@torch.no_grad()
def test_inactive_weights_are_not_read(relative_error):
    model = SlimModel("small")
    noisy = torch.randn(2, 1, 700)
    before = model(noisy, 0.25)
    for level, block in enumerate([*model.network.encoder, *model.network.decoder]):
        k = model.ufs.channels(0.25, model.network.config.channels(level % 3 + 1))
        block.conv_weight[k:] = torch.nan
        block.glu_weight[k:] = torch.nan
    assert torch.equal(model(noisy, 0.25), before)
    assert relative_error(model(noisy, torch.tensor([0.25, 0.25])), before) < 1e-6
    assert model(noisy, 0.5).isnan().any()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_number_formats(model, dtype, limit, relative_error):
    noisy = 0.1 * torch.randn(2, 1, 900)
    expected = model(noisy, model.ufs[1])
    actual = model.to(dtype)(noisy.to(dtype), model.ufs[1])
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < limit


@pytest.mark.parametrize(
    "noisy",
    [
        torch.randn(16000),
        torch.randn(1, 16000),
        torch.randn(1, 2, 500),
        torch.zeros(1, 1, 0),
        torch.ones(1, 1, 9).int(),
    ],
)
def test_bad_input_is_refused(noisy):
    with pytest.raises(ValueError, match="expected"):
        SlimModel("small")(noisy)


@pytest.mark.parametrize(
    "value",
    [{"hidden": 0}, {"resample": 3}, {"stride": 3}, {"rnn": "rnn"}, {"groups": 3}, {"floor": 0}, {"level": "x"}],
)
def test_bad_configurations_are_refused(value):
    with pytest.raises(ValueError, match=next(iter(value))):
        (ModelConfig if value.keys() & {"floor", "level"} else SlimDemucsConfig)(**value)


def test_configuration_round_trip_and_unknown_keys():
    config = VARIANTS["other widths"]
    assert SlimDemucsConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="widht"):
        SlimDemucsConfig.from_dict({"widht": 1})


@torch.no_grad()
def test_extracted_widths_are_plain_small_and_equal(model, relative_error):
    noisy = torch.randn(2, 1, 1500)
    sizes = []
    for uf in model.ufs:
        plain = model.extract(uf)
        assert relative_error(plain(noisy), model(noisy, uf)) < 1e-6
        owners = {
            type(module).__module__.split(".")[0]
            for module in plain.modules()
            if list(module.parameters(recurse=False))
        }
        assert owners == {"torch"}
        sizes.append(sum(parameter.numel() for parameter in plain.parameters()))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_state_dict_has_pytorch_layouts():
    state = SlimModel("small").state_dict()
    assert state["network.encoder.1.conv.weight"].shape == (16, 8, 8)
    assert state["network.encoder.1.glu.weight"].shape == (32, 16, 1)
    assert state["network.decoder.1.glu.weight"].shape == (32, 16, 1)
    assert state["network.decoder.1.conv.weight"].shape == (16, 8, 8)
    assert state["network.bottleneck.0.weight_ih_l0"].shape == (48, 16)


def test_wrong_state_dicts_are_refused():
    model = SlimModel("small")
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    for changed, message in (
        (
            {name: tensor for name, tensor in state.items() if name != "network.encoder.1.glu.bias"},
            r"Missing key.*encoder\.1\.glu\.bias",
        ),
        ({**state, "network.encoder.1.extra": torch.zeros(1)}, r"Unexpected key.*encoder\.1\.extra"),
        (
            {**state, "network.encoder.1.conv.weight": torch.zeros(16, 8, 9)},
            r"1\.conv\.weight has shape \(16, 8, 9\)",
        ),
    ):
        with pytest.raises(RuntimeError, match=re.compile(message, re.DOTALL)):
            model.load_state_dict(changed)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_untrained_weights_are_a_rough_copy_at_every_width(relative_error):
    """Up to 2 kHz; what the interpolation between samples takes away grows with the frequency."""
    time = torch.arange(4000) / 16_000
    noisy = 0.05 * sum(torch.sin(2 * torch.pi * f * time + f) for f in (110.0, 500.0, 1999.0))[None, None]
    for name in ("paper", "dns48"):
        model = SlimModel(name)
        for uf in model.ufs:
            assert relative_error(model(noisy, uf)[..., 500:-500], noisy[..., 500:-500]) < 0.1


@torch.no_grad()
def test_an_extracted_width_streams_and_is_saved(model, tmp_path):
    noisy, uf = torch.randn(2, 1500), model.ufs[1]
    plain = model.extract(uf)
    assert plain.ufs == (1.0,)
    expected = model(noisy[:, None], uf)[:, 0]
    if model.config.level != "signal":
        assert_close(run_in_chunks(Streamer(plain, streams=2), noisy, [77, 500, 1]), expected)
    slimse.save(plain, tmp_path / "plain.safetensors")
    again = slimse.load(tmp_path / "plain.safetensors")
    assert again.config == plain.config
    assert_close(again(noisy[:, None]), plain(noisy[:, None]), 1e-6)
    with pytest.raises(ValueError, match="has no extract"):
        plain.extract(1.0)


# Costs -----------------------------------------------------------------------------------------------------------


def test_published_macs():
    """The paper's table, within 1 %."""
    for width in profile(SlimModel("paper")).widths:
        assert width.macs_per_sample == pytest.approx(PUBLISHED[width.uf], rel=0.01)


def test_macs_are_those_that_run():
    """Against PyTorch's own counter of matrix products, on the parts that are matrix products with no waste."""
    from torch.utils.flop_counter import FlopCounterMode

    model = SlimModel("small")
    for width in profile(model).widths:
        counts = []
        for frames in (2, 10):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(torch.randn(1, 1, model.geometry.span(frames)), width.uf)
            # The running level takes a few products per sample; a triangular matrix is only the form it has here.
            resampling = sum(
                sum(ops.values())
                for name, ops in counter.get_flop_counts().items()
                if re.search(r"\.(up|down)\.\d$|\.level$", name)
            )
            counts.append(counter.get_total_flops() - resampling)
        blocks = sum(macs for name, macs in width.blocks.items() if not name.startswith(("up", "down")))
        assert (counts[1] - counts[0]) / 2 / (8 * model.geometry.hop) == pytest.approx(blocks)


def test_weight_bytes_and_latency():
    result = profile(SlimModel("paper"))
    assert result.widths[-1].weight_bytes_per_frame == 4 * result.parameters
    assert result.widths[0].weight_bytes_per_frame < 0.21 * result.widths[-1].weight_bytes_per_frame
    assert result.latency_ms == pytest.approx(47.6875)
    assert result.hop == 256


# Reference weights -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["demucs_causal_h8", "demucs_bidirectional_h8"])
def test_reference_weights_give_the_reference_output(shared, name, relative_error):
    folder = shared / "golden" / name
    pair = load_file(folder / "io.safetensors")
    for source in (folder, folder / "state_dict.safetensors"):
        model = load_denoiser(source)
        assert relative_error(model(pair["noisy"]), pair["enhanced"]) < 1e-5
    for uf in model.ufs:
        assert relative_error(model.extract(uf)(pair["noisy"]), model(pair["noisy"], uf)) < 1e-6


def original_state(config):
    """Random weights under the original's names, in its order of decoder levels."""
    state, depth = {}, config.network.depth
    for name, tensor in SlimModel(config).state_dict().items():
        part, level, *rest = name.removeprefix("network.").split(".")
        if part == "encoder":
            name = f"encoder.{level}.{0 if rest[0] == 'conv' else 2}.{rest[1]}"
        elif part == "decoder":
            name = f"decoder.{depth - 1 - int(level)}.{0 if rest[0] == 'glu' else 2}.{rest[1]}"
        else:
            name = f"lstm.{level}.{rest[0]}"
        state[name] = tensor.contiguous()
    return state


class Demucs:
    """Stands for the original's class in a pickled package."""


@torch.no_grad()
def test_published_packages_are_read_without_their_code(tmp_path, monkeypatch, relative_error):
    state = original_state(LSTM)
    kwargs = {"hidden": 8, "depth": 3, "resample": 2, "max_hidden": 10_000, "glu": True, "rescale": 0.1}
    noisy = torch.randn(1, 1, 800)
    expected = load_denoiser(state, resample=2)(noisy)
    for source in (
        {"class": None, "args": (), "kwargs": kwargs, "state": state},
        {"args": (1, 1, 8), "kwargs": kwargs, "state": state},
    ):
        assert relative_error(load_denoiser(source)(noisy), expected) < 1e-7

    # A pickle that names denoiser.demucs.Demucs, which is not installed.
    monkeypatch.setattr(Demucs, "__module__", "denoiser.demucs")
    import sys
    import types

    module = types.ModuleType("denoiser.demucs")
    module.Demucs = Demucs
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "denoiser", types.ModuleType("denoiser"))
        patch.setitem(sys.modules, "denoiser.demucs", module)
        torch.save({"class": Demucs, "args": (), "kwargs": kwargs, "state": state}, tmp_path / "best.th")
    torch.save(state, tmp_path / "bare.pth")
    assert relative_error(load_denoiser(tmp_path / "best.th")(noisy), expected) < 1e-7
    assert relative_error(load_denoiser(str(tmp_path / "bare.pth"), resample=2)(noisy), expected) < 1e-7


class Bomb:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_a_pickle_with_code_is_refused_unexecuted(tmp_path):
    torch.save({"class": Bomb(), "args": (), "kwargs": {}, "state": {}}, tmp_path / "bad.th")
    with pytest.raises(ValueError, match="nothing in it was executed"):
        load_denoiser(tmp_path / "bad.th")


def test_other_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a DEMUCS denoiser"):
        load_denoiser({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="hidden = 9"):
        load_denoiser({"args": (), "kwargs": {"hidden": 9}, "state": original_state(LSTM)})
    with pytest.raises(FileNotFoundError, match=r"none\.th"):
        load_denoiser(tmp_path / "none.th")


# Saving ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_save_and_load(model, tmp_path, relative_error):
    path = tmp_path / "model.safetensors"
    slimse.save(model, path)
    loaded = slimse.load(path)
    noisy = torch.randn(1, 1, 600)
    assert loaded.config == model.config
    assert torch.equal(loaded(noisy), model(noisy))
    slimse.save(model, path, dtype=torch.float16)
    assert relative_error(slimse.load(path)(noisy), model(noisy)) < 1e-2
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_loading_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights 'nothing'"):
        slimse.load("nothing")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        slimse.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.safetensors is not a safetensors file"):
        slimse.load(tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="load_denoiser"):
        slimse.load(tmp_path / "other.safetensors")
