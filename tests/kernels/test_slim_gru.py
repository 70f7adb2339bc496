"""The grouped GRU's kernels, resident and streamed, against a loop in plain torch."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from slimse.kernels import launching
from slimse.kernels import recurrence as recurrence_module
from slimse.kernels import slim_gru as module
from slimse.kernels.recurrence import RecurrentConfig, select_config
from slimse.kernels.slim_gru import slim_gru_backward, slim_gru_forward

RESIDENT, STREAMED = RecurrentConfig(True, 32, 32, 4), RecurrentConfig(False, 16, 16, 4)
NAMES = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "state")


@contextmanager
def chosen(config):
    """Within, launch parameters are these; None leaves the choice to the launcher."""
    with mock.patch.object(module, "select_config", (lambda *_, **__: config) if config else select_config):
        yield


def make(batch, time, groups, inputs, units, device, dtype=torch.float32):
    """Arguments without the width, and gradients of both outputs."""
    shapes = (
        *((batch, time, groups * inputs), (groups, units, 3, inputs), (groups, units, 3, units)),
        *((groups, units, 3), (groups, units, 3), (groups, batch, units)),
        *((batch, time, groups * units), (groups, batch, units)),
    )
    *args, grad, grad_last = (0.5 * torch.randn(shape, device=device).to(dtype) for shape in shapes)
    return args, grad, grad_last


def recurrence(x, weight_ih, weight_hh, bias_ih, bias_hh, state, width):
    """A loop over the steps with masks."""
    groups, units, _, inputs = weight_ih.shape
    outputs = []
    for t in range(x.shape[1]):
        k = torch.full((x.shape[0],), width, device=x.device) if isinstance(width, int) else width[:, t]
        active = torch.arange(units, device=x.device) < k.unsqueeze(1)
        now = x[:, t].unflatten(1, (groups, inputs)).transpose(0, 1)
        gates = torch.einsum("mbi,mugi->mbug", now, weight_ih) + bias_ih.unsqueeze(1)
        seen = torch.where(active, state, 0)
        sums = torch.einsum("mbj,mugj->mbug", seen, weight_hh) + bias_hh.unsqueeze(1)
        reset, update = torch.sigmoid(gates[..., :2] + sums[..., :2]).unbind(-1)
        new = torch.tanh(gates[..., 2] + reset * sums[..., 2])
        state = torch.where(active, new + update * (state - new), state)
        outputs.append(torch.where(active, state, 0).transpose(0, 1).flatten(1))
    out = torch.stack(outputs, 1) if outputs else x.new_zeros(x.shape[0], 0, groups * units)
    return out, state


def reference(args, width, grad, grad_last, dtype=torch.float64):
    """Outputs and gradients in ``dtype``."""
    leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in args]
    outputs = recurrence(*leaves, width)
    # Of no steps the output is a constant.
    pairs = [(out, pull.to(dtype)) for out, pull in zip(outputs, (grad, grad_last), strict=True) if out.requires_grad]
    found, given = zip(*pairs, strict=True)
    grads = torch.autograd.grad(found, leaves, given, allow_unused=True, materialize_grads=True)
    return [t.detach() for t in outputs], grads


def run(args, width, grad, grad_last, config):
    """Outputs and gradients of the kernels."""
    *weights, state = args
    with chosen(config):
        out, last = slim_gru_forward(*weights, width, state)
        return (out, last), slim_gru_backward(grad, grad_last, out, *weights, width, state)


def check(distance, args, width, grad, grad_last, config):
    """Compare both outputs and all gradients with the reference's."""
    outputs, grads = reference(args, width, grad, grad_last)
    ours, mine = run(args, width, grad, grad_last, config)
    assert all(distance(a, b) <= 1e-5 for a, b in zip(ours, outputs, strict=True))
    for name, a, b in zip(NAMES, mine, grads, strict=True):
        assert distance(a, b) <= 1e-5, name


@pytest.mark.parametrize("config", [RESIDENT, STREAMED], ids=["resident", "streamed"])
@pytest.mark.parametrize(
    ("batch", "time", "groups", "inputs", "units", "width"),
    [
        (1, 1, 1, 1, 1, 1),
        pytest.param(2, 4, 2, 3, 20, 20, marks=pytest.mark.exhaustive),
        (17, 2, 1, 4, 8, 3),
        (2, 2, 3, 5, 18, 17),
        (2, 3, 1, 2, 6, 0),
    ],
)
def test_matches_the_twin_at_one_width(distance, device, batch, time, groups, inputs, units, width, config):
    args, grad, grad_last = make(batch, time, groups, inputs, units, device)
    check(distance, args, width, grad, grad_last, config)


def test_every_step_at_its_own_width(distance, device):
    args, grad, grad_last = make(3, 3, 2, 4, 20, device)
    for widths in ([0, 1, 17, 20], [5]):
        width = torch.tensor(widths, device=device)[torch.randint(len(widths), (3, 3), device=device)]
        check(distance, args, width, grad, grad_last, None)


@pytest.mark.exhaustive
def test_every_width(distance, device):
    args, grad, grad_last = make(1, 2, 1, 3, 5, device)
    for width in range(6):
        check(distance, args, width, grad, grad_last, None)


@pytest.mark.parametrize("ragged", [False, True])
def test_inactive_units_are_never_used(device, ragged):
    args, grad, grad_last = make(2, 3, 1, 3, 20, device)
    width = torch.randint(0, 8, (2, 3), device=device) if ragged else 7
    k = int(width.max()) if ragged else width
    for config in (STREAMED,) if ragged else (RESIDENT, STREAMED):
        outputs, grads = run(args, width, grad, grad_last, config)
        poisoned = [args[0], *(t.clone() for t in args[1:5]), args[5]]
        for weight in poisoned[1:5]:
            weight[:, k:] = float("nan")
        poisoned[2][..., k:] = float("nan")
        again, grads_again = run(poisoned, width, grad, grad_last, config)
        assert all(torch.equal(a, b) for a, b in zip((*again, *grads_again), (*outputs, *grads), strict=True))
        # What sleeping units remember comes out again as it was, and nowhere else.
        poisoned[5] = args[5].clone()
        poisoned[5][..., k:] = float("nan")
        (out, last), grads_again = run(poisoned, width, grad, grad_last, config)
        assert last[..., k:].isnan().all()
        found, expected = (out, last[..., :k], *grads_again), (outputs[0], outputs[1][..., :k], *grads)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.exhaustive), torch.bfloat16])
@pytest.mark.parametrize("config", [RESIDENT, STREAMED, None], ids=["resident", "streamed", "ragged"])
def test_half_precision_is_as_close_as_torch(distance, device, dtype, config):
    args, grad, grad_last = make(2, 4, 1, 8, 20, device, dtype)
    width = 18 if config else torch.randint(0, 21, (2, 4), device=device)
    exact, exact_grads = reference(args, width, grad, grad_last)
    torchs, torchs_grads = reference(args, width, grad, grad_last, dtype)
    ours, grads = run(args, width, grad, grad_last, config)
    for mine, theirs, true in zip((*ours, *grads), (*torchs, *torchs_grads), (*exact, *exact_grads), strict=True):
        assert mine.dtype == dtype
        assert distance(mine, true) <= 2 * distance(theirs, true) + torch.finfo(dtype).eps


@pytest.mark.parametrize("config", [RESIDENT, STREAMED], ids=["resident", "streamed"])
def test_pieces_give_what_the_whole_gives(device, config):
    (x, *weights, state), _, _ = make(2, 6, 2, 3, 10, device, torch.bfloat16)
    state = state.float()
    pieces = []
    with chosen(config):
        out, last = slim_gru_forward(x, *weights, 8, state)
        for piece in x.split([1, 3, 2], 1):
            part, state = slim_gru_forward(piece, *weights, 8, state)
            pieces.append(part)
    assert torch.equal(torch.cat(pieces, 1), out)
    assert torch.equal(state, last)


def test_slices_and_no_steps(distance, device):
    (x, *weights, state), grad, grad_last = make(3, 8, 2, 3, 5, device)
    for part in (x[1:, 2:5], x[:, ::3], x.mT[..., :2].contiguous().mT, x[:, :0]):
        items, steps = part.shape[:2]
        given = [part, *weights, state.mT.contiguous().mT[:, :items]]
        check(distance, given, 4, grad.mT.contiguous().mT[:items, :steps], grad_last[:, :items], None)


def test_wrong_arguments_name_what_was_expected(device):
    (x, *weights, state), grad, grad_last = make(2, 3, 2, 4, 6, device)
    for message, call in (
        ("width = 7", (x, *weights, 7, state)),
        ("x has shape", (x[:, :, 1:], *weights, 6, state)),
        ("weight_hh has shape", (x, weights[0], weights[1][:, :, :2], *weights[2:], 6, state)),
        ("state is torch.float32", (x, *weights, 6, state[:, 1:])),
    ):
        with pytest.raises(ValueError, match=message):
            slim_gru_forward(*call)
    with pytest.raises(ValueError, match="grad has shape"):
        slim_gru_backward(grad[1:], grad_last, grad, x, *weights, 6, state)


def test_weights_stay_on_chip_where_they_fit():
    from slimse.kernels.rows import Prefix

    rows = torch.zeros(1, 1, dtype=torch.int32)
    assert select_config(Prefix(128), torch.float16).resident
    assert not select_config(Prefix(128), torch.float32, "tf32").resident
    assert not select_config(Prefix(128, rows), torch.float16).resident
    for units in (1, 16, 100, 512):
        for dtype in (torch.float16, torch.float32):
            config = select_config(Prefix(units), dtype)
            assert all(size >= 16 and size & (size - 1) == 0 for size in (config.block_u, config.block_j))
            assert not config.resident or config.block_u >= units


@pytest.fixture
def flag(monkeypatch):
    """Programs wait for each other in the interpreter too, though not for long; set where one did so in vain."""
    found = torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(launching, "resident_programs", lambda device: 132)
    monkeypatch.setattr(launching, "gave_up_flag", lambda device: found)
    monkeypatch.setattr(recurrence_module, "POLLS", 2)
    return found


def test_one_program_never_waits_for_itself(distance, device, flag):
    args, grad, grad_last = make(2, 3, 1, 2, 16, device)
    check(distance, args, 16, grad, grad_last, STREAMED)
    assert not flag.any()


def test_a_wait_that_does_not_end_is_given_up(distance, device, flag):
    """In the interpreter one program runs after the other, so that the first of two waits in vain."""
    if device != "cpu":
        pytest.skip("on a GPU they do not wait in vain")
    (*weights, state), grad, grad_last = make(2, 3, 1, 2, 20, device)
    expected, _ = recurrence(*weights, state, 20)
    with chosen(STREAMED):
        out, last = slim_gru_forward(*weights, 20, state)
        # The first step of the first program needs nobody else.
        assert distance(out[:, :1, :16], expected[:, :1, :16]) <= 1e-5
        assert out[:, 1:].isnan().all() and last.isnan().all()
        assert flag.all()
        # From then on nothing waits.
        with pytest.raises(RuntimeError, match="waited in vain"):
            slim_gru_forward(*weights, 20, state)
        with pytest.raises(RuntimeError, match="waited in vain"):
            slim_gru_backward(grad, grad_last, expected, *weights, 20, state)
        flag.zero_()
        grads = slim_gru_backward(grad, grad_last, expected, *weights, 20, state)
    assert grads[0][:, 0].isnan().all()
    assert flag.all()


@pytest.mark.parametrize(
    ("processors", "expected"),
    [(12, [((2, 2, 3), True)] * 2), (11, [((2, 1, 3), True)] * 4), (5, [((2, 2, 3), False)] * 5)],
    ids=["all", "a tile at a time", "a step at a time"],
)
def test_no_more_programs_wait_than_there_are_multiprocessors(device, monkeypatch, processors, expected):
    """Of 100 items in two tiles, three groups and 20 units in two programs; two steps forward, and three launches back.

    Those that wait are launched together, so that a driver refuses what it cannot put on the chip at once.
    """
    (*weights, state), grad, grad_last = make(100, 2, 3, 2, 20, device)
    loops, grids = (*recurrence_module.FORWARD, *recurrence_module.BACKWARD), []

    def note(kernel, grid, *_, launch_cooperative_grid=False, **__):
        if kernel in loops:
            grids.append((grid, launch_cooperative_grid))

    monkeypatch.setattr(launching, "launch", note)
    monkeypatch.setattr(launching, "resident_programs", lambda device: processors)
    with chosen(STREAMED):
        slim_gru_forward(*weights, 20, state)
        slim_gru_backward(grad, grad_last, grad, *weights, 20, state)
    assert grids == expected


def test_one_program_for_a_multiprocessor(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    properties = SimpleNamespace(multi_processor_count=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert launching.resident_programs(torch.device("cuda", 0)) == 7
    assert launching.resident_programs(torch.device("cpu")) == 0
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert launching.resident_programs(torch.device("cuda", 0)) == 0
