"""Exported files: equal to the network, runnable without PyTorch, and refused where they would not be."""

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx", reason="the extra slimse[onnx]")

import slimse  # noqa: E402
from slimse import Streamer  # noqa: E402
from slimse.cli import app  # noqa: E402
from slimse.config import ModelConfig  # noqa: E402
from slimse.export import check, export  # noqa: E402
from slimse.export.graphs import Graphs  # noqa: E402
from slimse.export.notes import notes  # noqa: E402
from slimse.export.streamer import OnnxStreamer, open_session  # noqa: E402
from slimse.networks import SlimDemucsConfig  # noqa: E402
from slimse.router import RouterConfig  # noqa: E402
from slimse.testing import tiny_model  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
ROUTER = RouterConfig(filters=8, kernel_size=32, stride=8, units=8)
SMALL = {"hidden": 4, "depth": 3, "resample": 4, "groups": 2}
SHAPES = {
    "two resampling stages, a router": SMALL | {"router": ROUTER},
    "no resampling, no level": SMALL | {"resample": 1, "level": "none"},
    "kernels of three strides": SMALL | {"depth": 2, "resample": 2, "kernel_size": 12},
    "kernels of one stride": SMALL | {"resample": 2, "kernel_size": 4},
}
"""Networks of 16 to 64 samples per frame."""


def network(**shape):
    """Weights of a size that a trained network has: outputs as loud as the input, and a router that decides."""
    whole = {key: shape.pop(key) for key in ("router", "level") if key in shape}
    model = tiny_model(ModelConfig(SlimDemucsConfig(**shape), **whole), router="router" in whole, backend="reference")
    for name, parameter in model.named_parameters():
        parameter.mul_(3 if "decoder" in name else 1)
    return model


def proto_of(model, uf=None, frames=1, precision="float32", whole=False):
    """A model, without a file and without its own check."""
    graphs = Graphs(model, list(model.ufs) if uf is None else [uf], frames, precision)
    kind = "whole" if whole else "stream"
    return (graphs.whole if whole else graphs.streaming)(notes(graphs, model, kind, precision))


def made(*arguments, **options):
    """A session of it."""
    proto = proto_of(*arguments, **options)
    return proto, open_session(proto.SerializeToString())


def streamed(streamer, noisy, size):
    parts = [streamer.feed(noisy[start : start + size]) for start in range(0, len(noisy), size)]
    return parts, np.concatenate([*parts, streamer.flush()])


def lengths(model):
    """Of signals: shorter than a frame, at the edge of a frame, past it, and longer."""
    edge = model.geometry.receptive + 3 * model.geometry.hop
    return 5, model.geometry.hop, edge - 1, edge, edge + 1, 40 * model.geometry.hop + 7


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_stream_equals_pytorch_chunk_by_chunk(shape, relative_error):
    """At one UF, at a UF that changes at every chunk, and where the router chooses; short signals too."""
    model = network(**shape)
    _, one = made(model, 0.5)
    _, every = made(model)
    for samples in lengths(model):
        noisy = check.test_signal(samples)
        cases = [(OnnxStreamer(one), {"uf": 0.5}), (OnnxStreamer(every, 0.25), {"uf": 0.25})]
        if model.router is not None:
            cases.append((OnnxStreamer(every, budget=0.4), {"budget": 0.4}))
        for streamer, options in cases:
            ours, whole = streamed(streamer, noisy, 3 * model.geometry.hop + 1)
            theirs, expected = streamed(Streamer(model, **options), noisy, 3 * model.geometry.hop + 1)
            assert [len(part) for part in ours] == [len(part) for part in theirs]
            assert relative_error(torch.from_numpy(whole), torch.from_numpy(expected)) < 1e-4
            assert streamer.latency == model.geometry.latency
    ours, theirs = OnnxStreamer(every, 1.0), Streamer(model, 1.0)
    ufs = [1.0, 0.125, 0.5, 0.25, 1.0, 0.125]
    pairs = [
        (ours.feed(part, uf), theirs.feed(part, uf)) for part, uf in zip(np.array_split(noisy, 6), ufs, strict=True)
    ]
    joined = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*pairs, strict=True)]
    assert relative_error(*joined) < 1e-4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("frames", [3, None])
def test_whole_signals_equal_pytorch(shape, frames, relative_error):
    """Several frames at a time at one UF; and all UFs, with the router's choice for every frame."""
    model = network(**shape)
    _, session = made(model, 0.5 if frames else None, frames or 1, whole=True)
    for samples in lengths(model):
        noisy = torch.from_numpy(check.test_signal(samples))
        inputs = {"noisy": noisy[None].numpy()}
        if frames:
            choices = [(inputs, 0.5)]
        elif model.router is None:
            choices = [(inputs | {"uf": np.float32([0.25])}, 0.25)]
        else:
            ufs, budget = model.route(noisy[None, None], 0.4), {"budget": np.float32([0.4])}
            choices = [
                (inputs | budget | {"uf": np.float32([0.25])}, 0.25),
                (inputs | budget | {"uf": np.float32([0])}, ufs),
            ]
        for feeds, uf in choices:
            enhanced, *chosen = session.run(None, feeds)
            assert relative_error(torch.from_numpy(enhanced), model(noisy[None, None], uf)[0]) < 1e-4
            if chosen:
                assert np.array_equal(chosen[0], np.float32(uf).reshape(-1) + 0 * chosen[0])


def test_several_frames_per_call_give_the_same(relative_error):
    model = network(**SMALL)
    _, session = made(model, 0.5, frames=5)
    for samples in lengths(model):
        noisy = check.test_signal(samples)
        _, whole = streamed(OnnxStreamer(session), noisy, 33)
        expected = model(torch.from_numpy(noisy)[None, None], 0.5)[0, 0]
        assert relative_error(torch.from_numpy(whole), expected) < 1e-4


def test_weights_are_stored_once_and_in_fewer_bits():
    """All UFs in one file cost no more than the widest; one narrow UF costs what it needs."""
    model = network(hidden=16, depth=4, router=ROUTER)
    sizes = {}
    for uf in (None, 1.0, 0.125):
        for precision in ("float32", "float16", "int8"):
            tensors = proto_of(model, uf, precision=precision).graph.initializer
            sizes[uf, precision] = sum(len(tensor.raw_data) for tensor in tensors if "coder" in tensor.name)
    weights = sum(p.numel() for name, p in model.named_parameters() if "coder" in name)
    assert sizes[1.0, "float32"] < 4.1 * weights
    assert sizes[1.0, "float16"] < 2.1 * weights
    assert sizes[1.0, "int8"] < 1.4 * weights
    for precision in ("float32", "float16", "int8"):
        assert sizes[None, precision] <= 1.02 * sizes[1.0, precision]
        assert sizes[0.125, precision] < 0.25 * sizes[1.0, precision]


def test_rounded_weights_are_close(relative_error):
    """float16 is the network with rounded weights; int8 is near it, and nearer than silence by far."""
    model = network(**SMALL | {"depth": 4})
    noisy = check.test_signal(60 * model.geometry.hop)
    for precision, reference, limit in (("float16", check._rounded(model), 1e-4), ("int8", model, 0.3)):
        for uf in (None, 0.5):
            _, session = made(model, uf, precision=precision)
            _, whole = streamed(OnnxStreamer(session, None if uf else 0.5), noisy, 100)
            expected = reference(torch.from_numpy(noisy)[None, None], 0.5)[0, 0]
            assert relative_error(torch.from_numpy(whole), expected) < limit


def test_metadata_is_what_sherpa_onnx_reads_and_ops_are_standard():
    model = network(**SMALL | {"router": ROUTER})
    proto, session = made(model)
    onnx.checker.check_model(proto, full_check=True)
    about = session.get_modelmeta().custom_metadata_map
    assert about["model_type"] == "slimse"
    assert all(int(about[key]) > 0 for key in ("version", "sample_rate", "hop_length", "window_length", "latency"))
    assert about["ufs"] == "0.125,0.25,0.5,1"
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    states = [name for name in shapes if name.startswith("state_")]
    assert len(states) == 5
    assert all([int(n) for n in about[f"{name}_shape"].split(",")] == shapes[name] for name in states)
    assert [entry.domain for entry in proto.opset_import] == [""]
    assert proto.opset_import[0].version <= 21


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of weights, whose exports are compared over fewer frames than those of users."""
    monkeypatch.setattr(check, "FRAMES", 50)
    slimse.save(network(**SMALL | {"router": ROUTER}), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def run(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_command_says_in_one_line_what_it_found(weights, tmp_path):
    for options in (["--uf", "0.25", "--frames", "4"], ["--whole", "--precision", "float16"]):
        result = run(weights, "-o", tmp_path / "m.onnx", "--force", *options)
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) == 1
        assert "over 50 frames the largest relative error against PyTorch is " in result.stdout


def test_mistakes_are_one_line_that_names_the_value(weights, tmp_path):
    (tmp_path / "there.onnx").touch()
    for arguments, message in (
        ((weights, "-o", tmp_path / "m.txt"), "m.txt"),
        ((weights, "-o", tmp_path / "m.onnx", "--uf", "0.3"), "0.3"),
        ((weights, "-o", tmp_path / "there.onnx"), "--force"),
        ((weights, "-o", tmp_path / "m.onnx", "--frames", "0"), "frames = 0"),
        ((weights, "-o", tmp_path / "m.onnx", "--frames", "2"), "frames = 2"),
        ((weights, "-o", tmp_path / "m.pt2"), "one UF"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    for config in ({"rnn": "lstm"}, {"level": "signal"}):
        with pytest.raises(ValueError, match=next(iter(config.values()))):
            export(network(**SMALL | config), tmp_path / "m.onnx", 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.onnx", "w.safetensors"]


def test_a_file_that_differs_from_the_network_is_not_written(tmp_path, monkeypatch):
    """The check finds one weight of one UF that is wrong by half."""
    model = network(**SMALL)
    monkeypatch.setattr(check, "FRAMES", 50)
    honest = Graphs.__init__

    def wrong(self, *arguments, **options):
        honest(self, *arguments, **options)
        weights = self.stream.layers.weights
        # A copy: the arrays are the network's own.
        weights["decoder.0.conv.weight"] = weights["decoder.0.conv.weight"] * np.float32([[[1]], [[1]], [[1]], [[1.5]]])

    monkeypatch.setattr(Graphs, "__init__", wrong)
    with pytest.raises(ValueError, match=r"UF 1: relative error .* not written"):
        export(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_streamer_refuses_what_it_cannot_run(tmp_path):
    model = network(**SMALL)
    _, one = made(model, 0.5)
    _, every = made(model)
    _, whole = made(model, 0.5, whole=True)
    (tmp_path / "text.onnx").write_text("no model")
    for arguments, message in (
        ((one, 0.25), "0.25"),
        ((every,), "expected one of both"),
        ((every, 0.3), r"0\.3"),
        ((whole,), "whole"),
        ((tmp_path / "text.onnx",), r"text\.onnx"),
    ):
        with pytest.raises(ValueError, match=message):
            OnnxStreamer(*arguments)
    with pytest.raises(ValueError, match="no router"):
        OnnxStreamer(every, budget=0.5)
    with pytest.raises(FileNotFoundError, match="nothing"):
        OnnxStreamer(tmp_path / "nothing.onnx")
    streamer = OnnxStreamer(one)
    for chunk in (np.float32([0, np.nan]), np.float32([1e7]), np.zeros((2, 2), np.float32), np.zeros(3, int), [0.0]):
        with pytest.raises(ValueError, match="chunk"):
            streamer.feed(chunk)
    assert streamer.feed(np.zeros(0)).dtype == np.float64


def test_it_runs_where_pytorch_is_not_installed(tmp_path, relative_error):
    """The streamer, by its path, and the example: in a process that can import neither PyTorch nor this package."""
    model = network(**SMALL)
    (tmp_path / "m.onnx").write_bytes(made(model, 0.25)[0].SerializeToString())
    noisy = np.round(check.test_signal(40 * model.geometry.hop) * 32767).astype(np.int16)
    with wave.open(str(tmp_path / "noisy.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(noisy.tobytes())
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "slimse", "scipy", "soundfile", "onnx"), None))
import numpy as np
streamer = runpy.run_path({str(ROOT / "slimse" / "export" / "streamer.py")!r})["OnnxStreamer"]("m.onnx")
noisy = np.fromfile("noisy.raw", np.int16).astype(np.float32) / 32768
parts = [streamer.feed(part) for part in np.array_split(noisy, 7)]
np.concatenate([*parts, streamer.flush()]).tofile("enhanced.raw")
sys.argv[1:] = ["m.onnx", "noisy.wav", "enhanced.wav"]
runpy.run_path({str(ROOT / "examples" / "onnx_stream.py")!r}, run_name="__main__")
"""
    noisy.tofile(tmp_path / "noisy.raw")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = model(torch.from_numpy(noisy / np.float32(32768))[None, None], 0.25)[0, 0]
    ours = torch.from_numpy(np.fromfile(tmp_path / "enhanced.raw", np.float32))
    assert relative_error(ours, expected) < 1e-4
    with wave.open(str(tmp_path / "enhanced.wav")) as file:
        written = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert np.abs(written - 32768 * expected.numpy()).max() <= 0.51


def test_a_torch_program_has_pytorchs_own_ops_and_goes_on_from_its_example(tmp_path, monkeypatch, relative_error):
    monkeypatch.setattr("slimse.export.program.FRAMES", 50)
    model = network(**SMALL | {"depth": 2, "resample": 1, "level": "none"})
    found = export(model, tmp_path / "m.pt2", 0.5)
    assert found.error < 1e-4
    program = torch.export.load(tmp_path / "m.pt2")
    assert not any("slimse" in str(node.target) for node in program.graph.nodes)
    _, *state = program.example_inputs[0]
    run = program.module()
    noisy = torch.from_numpy(check.test_signal(30 * model.geometry.hop))[None]
    outputs = []
    for hop in noisy.split(model.geometry.hop, dim=1):
        out, *state = run(hop, *state)
        outputs.append(out)
    quiet = torch.zeros(1, model.geometry.first + (model.geometry.silent + 3) * model.geometry.hop)
    _, start = model.step(quiet, model.initial_state(), 0.5)
    assert relative_error(torch.cat(outputs, 1), model.step(noisy, start, 0.5)[0]) < 1e-4
