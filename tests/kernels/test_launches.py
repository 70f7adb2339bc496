"""What a call of the whole network makes a GPU do: how many launches, and that the host never waits for it."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from slimse.kernels import launching, tiles

from bench import checks
from slimse import SlimModel, ops, width
from slimse.ops import registration
from slimse.ops.registry import SPECS

VIEWS = {
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "squeeze"),
    *("t", "transpose", "unbind", "unfold", "unsqueeze", "view", "_unsafe_view", "_reshape_alias", "lift_fresh"),
    *("empty", "empty_strided", "new_empty", "empty_like", "new_empty_strided", "promote_types"),
}
"""Operations of PyTorch that launch nothing."""
WAITS = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "unique_consecutive",
}
"""Operations after which the host knows something that a GPU computed."""
COPIES = {"lift_fresh"}
"""A tensor from numbers of the host."""
SORTS = {"sort", "argsort", "topk", "msort"}


class Watch(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count, then run."""
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watch(monkeypatch):
    """A function that runs a call on kernels that are noted and not launched, and gives both counts."""
    started = []
    monkeypatch.setattr(launching, "launch", lambda kernel, grid, *args, **constants: started.append(kernel.__name__))
    # To whom looks on, a call is one of the registered op; and a test of values may not wait as on a GPU.
    monkeypatch.setattr(registration, "_untraced", lambda flat: True)
    monkeypatch.setattr(width, "_readable", lambda tensor: False)

    def run(call):
        # What is made once: tables on the device.
        call()
        started.clear()
        with torch.no_grad(), Watch() as watch:
            call()
        return Counter(started), watch.seen

    return run


@pytest.fixture
def model(monkeypatch):
    """The network of the paper, whose weights are not looked at, with the tiles of an H100."""
    monkeypatch.setattr(tiles, "reported_chip", lambda kind, index: tiles.Chip(90, 227 * 1024))
    monkeypatch.setattr(launching, "resident_programs", lambda device: 132)
    return SlimModel("dynamic", backend="triton").eval().requires_grad_(False)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 30), (torch.bfloat16, 30)])
def test_uniform_call_issues_thirty_launches_at_most(model, watch, dtype, most):
    noisy, model = torch.zeros(1, 1, 4000), model.to(dtype)
    for uf in model.ufs:
        launched, others = watch(lambda uf=uf: model(noisy, uf))
        others = Counter({name: count for name, count in others.items() if name not in VIEWS})
        assert launched.total() + others.total() <= most, (launched, others)


@pytest.mark.parametrize("kind", ["uniform", "items", "frames"])
def test_host_never_waits_for_the_device(model, watch, kind, monkeypatch):
    noisy = torch.zeros(2, 1, 4000)
    shape = {"items": (2,), "frames": (2, model.geometry.frames(4000))}.get(kind)
    uf = 0.25 if shape is None else torch.tensor(model.ufs)[torch.randint(4, shape)]
    sorts = []
    orders = width.frame_orders
    monkeypatch.setattr(width, "frame_orders", lambda *given: sorts.append(1) or orders(*given))
    _, others = watch(lambda: model(noisy, uf))
    assert not others.keys() & (WAITS | COPIES | SORTS), others
    # Two calls, of which the first fills caches.
    assert len(sorts) == (0 if shape is None else 2)


@pytest.mark.parametrize(
    "name",
    [
        # Half a minute; the LSTM has the same kernels.
        pytest.param(name, marks=pytest.mark.exhaustive if name == "slim_gru" else ())
        for name, spec in SPECS.items()
        if "weight_grads" in spec.skips and spec.bounds
    ],
)
def test_nothing_is_computed_for_frozen_parts(name, monkeypatch, device):
    """By launches: of products that give the gradient of a weight, and of all."""
    started, launch = [], launching.launch
    monkeypatch.setattr(
        launching, "launch", lambda kernel, *args, **kw: started.append(kernel) or launch(kernel, *args, **kw)
    )
    counts, grads = {}, {}
    for wanted in ("all", "input", "weights"):
        torch.manual_seed(0)
        given = checks.arguments_of(name, 12, torch.float32, device)
        given[0].requires_grad_(wanted != "weights")
        for tensor in given[1:]:
            if isinstance(tensor, torch.Tensor):
                tensor.requires_grad_(wanted != "input")
        out = torch.utils._pytree.tree_leaves(getattr(ops, name)(*given, backend="triton"))[0]
        started.clear()
        out.square().sum().backward()
        names = [kernel.__name__ for kernel in started]
        counts[wanted] = Counter(names)["prefix_gemm_weight_grad"], len(names)
        grads[wanted] = given[0].grad, given[1].grad
    assert counts["input"][0] == 0 < counts["all"][0]
    assert counts["input"][1] < counts["all"][1]
    if "input_grad" in SPECS[name].skips:
        assert counts["weights"][1] < counts["all"][1]
    assert torch.equal(grads["input"][0], grads["all"][0])
    assert torch.equal(grads["weights"][1], grads["all"][1])
