"""Streams of a batch get what streamers of their own would give them."""

import functools
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from causal_conv import ConvConfig
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from slimse import ModelConfig, SlimDemucsConfig, SlimModel, Streamer, width
from slimse.networks.state import leaves
from slimse.router import RouterConfig
from slimse.runtimes.base import unavailable
from slimse.serving import StreamBatch

ROUTER = RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4)
CONFIGS = {
    "small": SlimModel("small").config,
    "lstm": SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm", rnn_layers=2),
    "paper": SlimDemucsConfig(),
    "routed": replace(SlimModel("small").config, router=ROUTER),
    "conv": ConvConfig(),
    "routed conv": ModelConfig(ConvConfig(), router=ROUTER),
    "routed lstm": ModelConfig(SlimDemucsConfig(hidden=8, depth=3, resample=2, rnn="lstm"), router=ROUTER),
}
PLANS = [(0, 9), (2, 14), (2, 1), (4, 3), (8, 12), (10, 7)]
"""Tick at which a stream joins, ticks that it stays: some leave before their first frame, slots are used again."""


def built(name):
    """A model, whose router uses all of its widths on noise, which a fresh one does not."""
    model = SlimModel(CONFIGS[name]).eval().requires_grad_(False)
    if model.router is not None:
        model.router.output.weight.normal_(std=4.0)
        model.router.bias_ih.normal_()
        model.router.bias_width.normal_(-1.5)
    return model


def wishes(model, streams, ticks, generator):
    """What each stream asks for at each tick, as arguments of `Streamer.feed`: widths, and budgets for a router."""
    drawn = torch.randint(len(model.ufs), (streams, ticks), generator=generator)
    budgets = torch.rand(streams, ticks, generator=generator) * 0.8 + 0.15
    auto = torch.rand(streams, ticks, generator=generator) < (0.7 if model.router is not None else 0.0)
    return [
        [(None, float(budgets[s, t])) if auto[s, t] else (model.ufs[int(drawn[s, t])], None) for t in range(ticks)]
        for s in range(streams)
    ]


def ask(batch, slot, uf, budget):
    if budget is None:
        batch.set_uf(slot, uf)
    else:
        batch.set_budget(slot, budget)


@pytest.mark.parametrize("runtime", ["eager", "numba"])
@pytest.mark.parametrize("name", CONFIGS)
def test_streams_that_come_and_go_equal_streamers(name, runtime, relative_error):
    model = built(name)
    if reason := unavailable(runtime, model, "batch"):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(1)
    batch = StreamBatch(model, 3, runtime=runtime)
    assert batch.runtime == runtime
    wanted = wishes(model, len(PLANS), 24, generator)
    noisy = 0.05 * torch.randn(len(PLANS), 24, model.geometry.hop, generator=generator)
    single = [Streamer(model, runtime="eager") for _ in PLANS]
    actual, expected, used = [[] for _ in PLANS], [[] for _ in PLANS], defaultdict(set)
    slots: dict[int, int] = {}
    for tick in range(24):
        for stream, (begin, stay) in enumerate(PLANS):
            if tick == begin + stay and stream in slots:
                actual[stream].append(batch.leave(slots.pop(stream)))
                expected[stream].append(single[stream].flush(*wanted[stream][tick - 1]))
            if tick == begin:
                slots[stream] = batch.join(*wanted[stream][tick])
        samples = torch.full((3, model.geometry.hop), float("nan"))
        for stream, slot in slots.items():
            samples[slot] = noisy[stream, tick]
            ask(batch, slot, *wanted[stream][tick])
            expected[stream].append(single[stream].feed(noisy[stream, tick], *wanted[stream][tick]))
        out, ready = batch.tick(samples)
        for stream, slot in slots.items():
            actual[stream].append(out[slot, : ready[slot]].clone())
            assert len(actual[stream][-1]) == len(expected[stream][-1])
            ran = single[stream].ufs[0]
            if len(ran):
                assert batch.ufs[slot] == ran[-1]
                used[wanted[stream][tick][0] is None].add(float(ran[-1]))
    assert batch.leave(batch.join()).shape == (0,)
    assert batch.slots == []
    assert all(len(seen) > 1 for seen in used.values()), used
    for stream, (_, stay) in enumerate(PLANS):
        whole = torch.cat(actual[stream])
        assert len(whole) == stay * model.geometry.hop
        assert relative_error(whole, torch.cat(expected[stream])) < 1e-5


class FromHost(TorchDispatchMode):
    """Notes tensors that are made of Python's numbers, as a CUDA graph cannot make them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.lift_fresh.default:
            self.seen.append(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["routed", "routed lstm"])
def test_a_tick_for_a_graph_stays_on_the_device_and_in_its_buffers(name, monkeypatch):
    """What a CUDA graph demands of the tick, without one."""
    pytest.importorskip("triton", reason="graphs are of kernels")
    model = built(name)
    batch = StreamBatch(model, 2, runtime="eager")
    layers = batch._slots
    kept = [part.data_ptr() for part in leaves(layers._state)]
    joined = batch.join(budget=0.3)
    for _ in range(6):
        batch.tick(torch.randn(2, model.geometry.hop))
    assert kept == [part.data_ptr() for part in leaves(layers._state)]
    assert batch.slots == [joined]
    # Tables that the first tick brings to the device are kept, though they are no real ones.
    monkeypatch.setattr(width, "_kept_table", functools.cache(width._kept_table.__wrapped__))
    monkeypatch.setattr(width, "detect_fake_mode", lambda: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Here kernels give tensors of the right shape, whose numbers nobody can look at.
        model = SlimModel(CONFIGS[name], backend="triton").eval().requires_grad_(False)
        layers = StreamBatch(model, 2, runtime="eager")._slots
        with FromHost() as host:
            # As before a graph is recorded, which fills the tables of widths.
            layers.run()
            assert host.seen
            host.seen.clear()
            layers.run()
            assert host.seen == []
            with pytest.raises(DataDependentOutputException):
                model.step(torch.randn(2, model.geometry.hop), layers._state, layers._asked)


def test_mistakes_are_named():
    model = SlimModel("small").eval()
    with pytest.raises(ValueError, match="capacity = 0"):
        StreamBatch(model, 0)
    batch = StreamBatch(model, 1)
    with pytest.raises(ValueError, match="slot = 0"):
        batch.leave(0)
    with pytest.raises(ValueError, match=r"\(0.125, 0.25, 0.5, 1.0\)"):
        batch.join(0.3)
    assert batch.slots == []
    assert batch.join(0.25) == 0
    with pytest.raises(ValueError, match="all 1 slots are in use"):
        batch.join()
    with pytest.raises(ValueError, match=r"expected floating \[1, 32\]"):
        batch.tick(torch.zeros(1, 31))
    with pytest.raises(ValueError, match="no router"):
        batch.set_budget(0, 0.3)
    with pytest.raises(ValueError, match="runtime = 'cuda-graph' cannot run here: the model is on cpu"):
        StreamBatch(model, 1, runtime="cuda-graph")
    with pytest.raises(ValueError, match="another level than 'signal'"):
        StreamBatch(SlimModel(ModelConfig(SlimDemucsConfig(hidden=4, depth=1, rnn="lstm"), level="signal")), 1)
