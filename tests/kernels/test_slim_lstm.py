"""The LSTM's kernels, resident and streamed, against the plain-torch reference."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from slimse.kernels import slim_lstm as module
from slimse.kernels.recurrence import RecurrentConfig, select_config
from slimse.kernels.slim_lstm import slim_lstm_backward, slim_lstm_forward

from slimse.ops.recurrent import slim_lstm

RESIDENT, STREAMED = RecurrentConfig(True, 32, 32, 4), RecurrentConfig(False, 16, 16, 4)
NAMES = ("x", "weight_ih", "weight_hh", "bias", "h", "c")


@contextmanager
def chosen(config):
    """Within, launch parameters are these; None leaves the choice to the launcher."""
    with mock.patch.object(module, "select_config", (lambda *_, **__: config) if config else select_config):
        yield


def make(batch, time, inputs, units, device, dtype=torch.float32):
    """Arguments without the width, and gradients of the three outputs."""
    shapes = (
        *((batch, time, inputs), (units, 4, inputs), (units, 4, units), (units, 4)),
        *((batch, units), (batch, units), (batch, time, units), (batch, units), (batch, units)),
    )
    tensors = [0.5 * torch.randn(shape, device=device).to(dtype) for shape in shapes]
    return tensors[:6], tensors[6:]


def reference(args, width, grads, dtype=torch.float64):
    """Outputs and gradients in ``dtype``."""
    leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in args]
    out, last = slim_lstm(*leaves[:4], width, tuple(leaves[4:]))
    outputs = (F.pad(out, (0, grads[0].shape[2] - out.shape[2])), *last)
    # Of no steps the output is a constant.
    pairs = [(out, grad.to(dtype)) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
    found, given = zip(*pairs, strict=True)
    pulled = torch.autograd.grad(found, leaves, given, allow_unused=True, materialize_grads=True)
    return [t.detach() for t in outputs], pulled


def run(args, width, grads, config):
    """Outputs and gradients of the kernels."""
    x, *weights = args[:4]
    grad = grads[0][:, :, :width] if isinstance(width, int) else grads[0]
    with chosen(config):
        out, last = slim_lstm_forward(x, *weights, width, tuple(args[4:]))
        pulled = slim_lstm_backward(grad, tuple(grads[1:]), out, x, *weights, width, tuple(args[4:]))
    return (F.pad(out, (0, grads[0].shape[2] - out.shape[2])), *last), (*pulled[:4], *pulled[4])


def check(distance, args, width, grads, config):
    """Compare all outputs and all gradients with the reference's."""
    outputs, expected = reference(args, width, grads)
    ours, mine = run(args, width, grads, config)
    assert all(distance(a, b) <= 1e-5 for a, b in zip(ours, outputs, strict=True))
    for name, a, b in zip(NAMES, mine, expected, strict=True):
        assert distance(a, b) <= 1e-5, name


@pytest.mark.parametrize("config", [RESIDENT, STREAMED], ids=["resident", "streamed"])
@pytest.mark.parametrize(
    ("batch", "time", "inputs", "units", "width"),
    [(1, 1, 1, 1, 1), (2, 2, 3, 20, 20), (17, 2, 4, 8, 3)],
)
def test_matches_the_twin_at_one_width(distance, device, batch, time, inputs, units, width, config):
    args, grads = make(batch, time, inputs, units, device)
    check(distance, args, width, grads, config)


def test_every_step_at_its_own_width(distance, device):
    args, grads = make(3, 4, 4, 20, device)
    for widths in ([0, 1, 17, 20], [5]):
        width = torch.tensor(widths, device=device)[torch.randint(len(widths), (3, 4), device=device)]
        check(distance, args, width, grads, None)


@pytest.mark.exhaustive
def test_every_width(distance, device):
    args, grads = make(1, 2, 3, 5, device)
    for width in range(6):
        check(distance, args, width, grads, None)


@pytest.mark.parametrize("ragged", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_inactive_units_are_never_used(device, ragged):
    args, grads = make(2, 3, 3, 20, device)
    width = torch.randint(0, 8, (2, 3), device=device) if ragged else 7
    k = int(width.max()) if ragged else width
    for config in (STREAMED,) if ragged else (RESIDENT, STREAMED):
        outputs, pulled = run(args, width, grads, config)
        poisoned = [args[0], *(t.clone() for t in args[1:4]), *args[4:]]
        for weight in poisoned[1:4]:
            weight[k:] = float("nan")
        poisoned[2][..., k:] = float("nan")
        again, pulled_again = run(poisoned, width, grads, config)
        assert all(torch.equal(a, b) for a, b in zip((*again, *pulled_again), (*outputs, *pulled), strict=True))
        # What sleeping units remember comes out again as it was, and nowhere else.
        poisoned[4:] = [F.pad(t[:, :k], (0, 20 - k), value=float("nan")) for t in args[4:]]
        (out, *last), pulled_again = run(poisoned, width, grads, config)
        assert all(t[:, k:].isnan().all() for t in last)
        found, expected = (out, *(t[:, :k] for t in last)), (outputs[0], *(t[:, :k] for t in outputs[1:]))
        assert all(torch.equal(a, b) for a, b in zip((*found, *pulled_again), (*expected, *pulled), strict=True))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.exhaustive), torch.bfloat16])
@pytest.mark.parametrize("config", [RESIDENT, STREAMED, None], ids=["resident", "streamed", "ragged"])
def test_half_precision_is_as_close_as_torch(distance, device, dtype, config):
    args, grads = make(2, 4, 8, 20, device, dtype)
    width = 18 if config else torch.randint(0, 21, (2, 4), device=device)
    exact, exact_pulled = reference(args, width, grads)
    torchs, torchs_pulled = reference(args, width, grads, dtype)
    ours, pulled = run(args, width, grads, config)
    for mine, theirs, true in zip((*ours, *pulled), (*torchs, *torchs_pulled), (*exact, *exact_pulled), strict=True):
        assert mine.dtype == dtype
        assert distance(mine, true) <= 2 * distance(theirs, true) + torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "config",
    [pytest.param(RESIDENT, marks=pytest.mark.exhaustive, id="resident"), pytest.param(STREAMED, id="streamed")],
)
def test_pieces_give_what_the_whole_gives(device, config):
    (x, *weights, h, c), _ = make(2, 6, 3, 10, device, torch.bfloat16)
    state = (h.float(), c.float())
    pieces = []
    with chosen(config):
        out, last = slim_lstm_forward(x, *weights, 8, state)
        for piece in x.split([1, 3, 2], 1):
            part, state = slim_lstm_forward(piece, *weights, 8, state)
            pieces.append(part)
    assert torch.equal(torch.cat(pieces, 1), out)
    assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))


def test_slices_narrow_inputs_and_no_steps(distance, device):
    args, grads = make(3, 8, 6, 5, device)
    x, *weights = args[:4]
    for part in (x[1:, 2:5], x[:, ::2], x[:, :2, :4], x[:, :0]):
        given = [part, *weights, *(t[: part.shape[0]] for t in args[4:])]
        pull = [grads[0][: part.shape[0], : part.shape[1]], *(t[: part.shape[0]] for t in grads[1:])]
        check(distance, given, 4, pull, None)


def test_no_active_units(device):
    (x, *weights, h, c), grads = make(2, 3, 2, 6, device)
    for config in (RESIDENT, STREAMED):
        with chosen(config):
            out, last = slim_lstm_forward(x, *weights, 0, (h, c))
            pulled = slim_lstm_backward(out, tuple(grads[1:]), out, x, *weights, 0, (h, c))
        assert out.shape == (2, 3, 0)
        assert torch.equal(last[0], h)
        assert torch.equal(last[1], c)
        assert not any(grad.any() for grad in pulled[:4])
        assert all(torch.equal(a, b) for a, b in zip(pulled[4], grads[1:], strict=True))


def test_wrong_arguments_name_what_was_expected(device):
    (x, *weights, h, c), grads = make(2, 3, 4, 6, device)
    for message, call in (
        ("width = 7", (x, *weights, 7, (h, c))),
        ("weight_hh has shape", (x, weights[0], weights[1][:, :2], weights[2], 6, (h, c))),
        ("c is torch.float32", (x, *weights, 6, (h, c[1:]))),
    ):
        with pytest.raises(ValueError, match=message):
            slim_lstm_forward(*call)
    with pytest.raises(ValueError, match="grad has shape"):
        slim_lstm_backward(grads[0][1:], tuple(grads[1:]), grads[0], x, *weights, 6, (h, c))
