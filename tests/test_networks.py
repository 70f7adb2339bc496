"""What plugs in: networks by their registry, runtimes by theirs."""

from dataclasses import dataclass

import pytest
import torch
from causal_conv import ConvConfig, ConvNet

import slimse
from slimse import ModelConfig, SlimModel, Streamer
from slimse.networks import NETWORKS, FrameGeometry, NetworkConfig, SlimDemucs, SlimDemucsConfig, register
from slimse.networks.state import copy, put, select, stack
from slimse.profiling import profile
from slimse.runtimes import RUNTIMES, choose
from slimse.runtimes import register as register_runtime
from slimse.runtimes.eager import EagerRuntime
from slimse.testing import TINY_ROUTER, assert_close, tiny_model


def test_costs_are_those_of_the_layers():
    costs = profile(tiny_model(ConvConfig(hop=32, channels=24), router=True))
    assert costs.hop == 32
    assert costs.latency_ms == 1000 * 63 / 16_000
    for width, k in zip(costs.widths, (3, 6, 12, 24), strict=True):
        assert width.blocks == {"hidden": k * 96 / 32}
    assert costs.router_macs_per_sample > 0


@pytest.mark.parametrize("config", [SlimDemucsConfig(), SlimDemucsConfig(hidden=4, depth=2, kernel_size=4, resample=1)])
def test_geometry_counts_the_frames_of_a_stream(config):
    geometry = config.geometry
    for samples in range(1, 4 * geometry.first, 7):
        done = geometry.frames_done(samples)
        assert geometry.frames(samples) >= done
        assert geometry.span(geometry.frames(samples)) >= samples
        assert (geometry.first + done * geometry.hop > samples) and (done == 0 or samples >= geometry.early(0))
        assert geometry.emitted(done) <= samples
    assert geometry.emitted(geometry.silent) == 0 < geometry.emitted(geometry.silent + 1)


def test_geometry_of_the_paper():
    assert SlimDemucsConfig().geometry == FrameGeometry(hop=256, first=681, receptive=597, delay=83)


def test_states_of_any_nesting_are_moved_by_streams():
    one, other = ({"a": torch.full((1, 3), value), "b": [(torch.full((1,), value),), 7]} for value in (1.0, 2.0))
    both = stack([one, other])
    assert both["a"].shape == (2, 3) and both["b"][1] == 7
    assert select(both, 1)["b"][0][0].item() == 2
    put(both, torch.tensor([0]), both, torch.tensor([1]))
    assert both["a"].min() == 2
    copy(both, stack([one, one]))
    assert both["b"][0][0].tolist() == [1, 1]


def test_mistakes_of_networks_are_named(tmp_path):
    @dataclass(frozen=True)
    class Unknown(NetworkConfig):
        ufs: tuple = (0.5, 1.0)
        sample_rate: int = 16_000

    with pytest.raises(ValueError, match="config is a Unknown: expected that of a registered network"):
        SlimModel(Unknown())
    with pytest.raises(ValueError, match="network 'conv' is registered already"):
        register("conv", Unknown)(ConvNet)
    with pytest.raises(ValueError, match="1 <= hop"):
        FrameGeometry(hop=3, first=2, receptive=2, delay=0)
    with pytest.raises(ValueError, match="a ConvNet has no extract"):
        tiny_model(ConvConfig()).extract(0.5)
    slimse.save(tiny_model(ConvConfig()), tmp_path / "conv.safetensors")
    known = NETWORKS.pop("conv")
    try:
        with pytest.raises(ValueError, match="network type = 'conv': expected one of"):
            slimse.load(tmp_path / "conv.safetensors")
    finally:
        NETWORKS["conv"] = known


def test_a_runtime_that_is_registered_is_taken(monkeypatch):
    class Mine(EagerRuntime):
        """The layers, under another name, for one network."""

        name = "mine"

        def unavailable(self, model):
            """None but for the conv network."""
            return None if isinstance(model.network, ConvNet) else "not a ConvNet"

    known = dict(RUNTIMES)
    register_runtime("mine", Mine())
    try:
        model = tiny_model(ModelConfig(ConvConfig(), router=TINY_ROUTER))
        assert Streamer(model).runtime == "mine"
        assert Streamer(model, runtime="eager").runtime == "eager"
        assert_close(
            Streamer(model, 0.5).feed(torch.ones(400)), Streamer(model, 0.5, runtime="eager").feed(torch.ones(400))
        )
        other = tiny_model("small")
        assert isinstance(other.network, SlimDemucs)
        assert Streamer(other).runtime != "mine"
        with pytest.raises(ValueError, match="runtime = 'mine' cannot run here: not a ConvNet"):
            Streamer(other, runtime="mine")
        with pytest.raises(ValueError, match="runtime 'mine' is registered already"):
            register_runtime("mine", Mine())
    finally:
        RUNTIMES.clear()
        RUNTIMES.update(known)
    with pytest.raises(ValueError, match="runtime = 'mine': expected one of"):
        choose("mine", other, "stream")
    with pytest.raises(ValueError, match="runtime = 'cuda-graph' cannot run here: it offers"):
        Streamer(other, runtime="cuda-graph")
