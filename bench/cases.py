"""What is timed: every op, block and the whole network, beside what people use instead.

Implementations of a case, each a call without arguments:

- ``slimse``: the op; where kernels are timed, on kernels and nothing else.
- ``sliced``: torch's layers (cuDNN's on a GPU) on sliced weights, only at one width per call. `compiled` makes of that
  what `torch.compile` makes of it; recurrent layers it leaves as they are.
- ``full``: torch's layers at full width.
- ``masked``: the same with inactive channels multiplied by zero, which is how widths are mixed elsewhere.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.points import Setup
from bench.roofline import CONFIG, Ceilings, Work, convolution, decoder_block, encoder_block, positions, recurrence
from slimse import SlimModel, ops
from slimse.nn import PackedLSTM
from slimse.profiling import profile
from slimse.width import LevelWidth, Width

TAPS, STRIDE = CONFIG.kernel_size, CONFIG.stride
Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """An op with its shapes; ``build`` gives the calls, and the work that the op does."""

    op: str
    label: str
    build: Callable[[Setup], tuple[Calls, Work]]
    compiles: bool = True
    """Whether a compiler has something to do."""
    captured: bool = True
    """Whether a call can be part of a CUDA graph."""


def _calls(slim: Callable[[], Any], plain: Callable[[int | None], Callable[[], Any]], width: LevelWidth) -> Calls:
    """All implementations; ``plain`` gives torch's layers at a width, at full width for -1, or masked for None."""
    calls = {"slimse": slim, "full": plain(-1), "masked": plain(None)}
    return {**calls, "sliced": plain(width)} if isinstance(width, int) else calls


def compiled(case: Case, setup: Setup, several: list[Calls]) -> list[Callable[[], Any]]:
    """`torch.compile` of the sliced layers of a case, built several times; none where that is no baseline.

    The compiler keeps eight graphs of a code, and then goes on without: it forgets them first.
    """
    if not case.compiles or "sliced" not in several[0]:
        return []
    torch.compiler.reset()
    return [torch.compile(calls["sliced"], dynamic=False, backend=setup.compiler) for calls in several]


def _encoder(level: int) -> Callable[[Setup], tuple[Calls, Work]]:
    def build(setup: Setup) -> tuple[Calls, Work]:
        c_in, c = CONFIG.channels(level - 1), CONFIG.channels(level)
        time, count = positions(level - 1, setup.seconds), positions(level, setup.seconds)
        width, mean = setup.width(c, count, by_frames=True)
        x, conv, glu = setup.random(setup.batch, time, c_in), setup.random(c, TAPS, c_in), setup.random(c, 2 * c)
        bias, glu_bias = setup.random(c), setup.random(2 * c)
        columns, mask = x.mT.contiguous(), setup.mask(width, c, count)

        def slim() -> Tensor:
            weights = (conv.view(c, -1), bias, glu, glu_bias)
            return ops.encoder_block(x, *weights, width, STRIDE, **setup.choice)

        def plain(k: int | None) -> Callable[[], Tensor]:
            rows = c if k in (None, -1) else k
            first, second = conv[:rows].mT.contiguous(), glu[:rows].t().contiguous().unsqueeze(2)

            def call() -> Tensor:
                h = torch.relu(F.conv1d(columns, first, bias[:rows], STRIDE))
                return F.glu(F.conv1d(h * mask if k is None else h, second, glu_bias), dim=1)

            return call

        return _calls(slim, plain, width), encoder_block(level, setup.batch, setup.seconds, mean)

    return build


def _decoder(level: int) -> Callable[[Setup], tuple[Calls, Work]]:
    def build(setup: Setup) -> tuple[Calls, Work]:
        c, c_out = CONFIG.channels(level), CONFIG.channels(level - 1)
        count = positions(level, setup.seconds)
        width, mean = setup.width(c, count, by_frames=True)
        x, skip = (setup.random(setup.batch, count, c) for _ in range(2))
        glu, glu_bias = setup.random(c, 2, c), setup.random(c, 2)
        conv, bias = setup.random(c, TAPS, c_out), setup.random(c_out)
        columns, added, mask = x.mT.contiguous(), skip.mT.contiguous(), setup.mask(width, c, count)

        def slim() -> Tensor:
            rest = (width, STRIDE, c_out, skip, bias, True)
            return ops.decoder_block(x, glu, glu_bias, conv.view(c, -1), *rest, **setup.choice)

        def plain(k: int | None) -> Callable[[], Tensor]:
            rows = c if k in (None, -1) else k
            first = glu[:rows].transpose(0, 1).reshape(2 * rows, c, 1).contiguous()
            first_bias, second = glu_bias[:rows].t().reshape(-1), conv[:rows].mT.contiguous()

            def call() -> Tensor:
                h = F.glu(F.conv1d(columns + added, first, first_bias), dim=1)
                return torch.relu(F.conv_transpose1d(h * mask if k is None else h, second, bias, STRIDE))

            return call

        return _calls(slim, plain, width), decoder_block(level, setup.batch, setup.seconds, mean)

    return build


def _convolution(setup: Setup) -> tuple[Calls, Work]:
    """The fourth encoder's convolution, outputs cut."""
    c_in, c = CONFIG.channels(3), CONFIG.channels(4)
    time, count = positions(3, setup.seconds), positions(4, setup.seconds)
    width, mean = setup.width(c, count)
    x, weight, bias = setup.random(setup.batch, time, c_in), setup.random(c, TAPS, c_in), setup.random(c)
    columns, mask = x.mT.contiguous(), setup.mask(width, c, count)

    def slim() -> Tensor:
        return ops.slim_conv1d(x, weight, bias, c_in, width, STRIDE, relu=True, **setup.choice)

    def plain(k: int | None) -> Callable[[], Tensor]:
        rows = c if k in (None, -1) else k
        cut = weight[:rows].mT.contiguous()

        def call() -> Tensor:
            h = torch.relu(F.conv1d(columns, cut, bias[:rows], STRIDE))
            return h * mask if k is None else h

        return call

    rows = setup.batch * count
    work = convolution(rows, setup.batch * time * c_in, rows * mean, mean * TAPS * c_in)
    return _calls(slim, plain, width), work


def _transposed(setup: Setup) -> tuple[Calls, Work]:
    """The fourth decoder's convolution, inputs cut."""
    c, c_out = CONFIG.channels(4), CONFIG.channels(3)
    count = positions(4, setup.seconds)
    width, mean = setup.width(c, count)
    x, weight, bias = setup.random(setup.batch, count, c), setup.random(c, TAPS, c_out), setup.random(c_out)
    columns, mask = x.mT.contiguous(), setup.mask(width, c, count)

    def slim() -> Tensor:
        rest = (width, c_out, STRIDE)
        return ops.slim_conv_transpose1d(x, weight, bias, *rest, relu=True, **setup.choice)

    def plain(k: int | None) -> Callable[[], Tensor]:
        rows = c if k in (None, -1) else k
        cut, given = weight[:rows].mT.contiguous(), columns[:, :rows].contiguous()

        def call() -> Tensor:
            return torch.relu(F.conv_transpose1d(given * mask if k is None else given, cut, bias, STRIDE))

        return call

    rows = setup.batch * count
    work = convolution(rows, rows * mean, rows * STRIDE * c_out, mean * TAPS * c_out)
    return _calls(slim, plain, width), work


def _pointwise(setup: Setup) -> tuple[Calls, Work]:
    """The fourth encoder's pointwise layer and GLU, inputs cut."""
    c, count = CONFIG.channels(4), positions(4, setup.seconds)
    width, mean = setup.width(c, count)
    x, weight, bias = setup.random(setup.batch, count, c), setup.random(c, 2 * c), setup.random(2 * c)
    columns, mask = x.mT.contiguous(), setup.mask(width, c, count)

    def plain(k: int | None) -> Callable[[], Tensor]:
        rows = c if k in (None, -1) else k
        cut, given = weight[:rows].t().contiguous().unsqueeze(2), columns[:, :rows].contiguous()
        return lambda: F.glu(F.conv1d(given * mask if k is None else given, cut, bias), dim=1)

    rows = setup.batch * count
    work = convolution(rows, rows * mean, rows * c, mean * 2 * c)
    slim = lambda: ops.slim_linear_glu(x, weight, bias, width, "input", **setup.choice)  # noqa: E731
    return _calls(slim, plain, width), work


def _mean_square(width: Width) -> float:
    return float(width.double().square().mean()) if isinstance(width, Tensor) else float(width) ** 2  # type: ignore[arg-type]


def _lstm(units: int, frames: int = 0) -> Callable[[Setup], tuple[Calls, Work]]:
    """One layer."""

    def build(setup: Setup) -> tuple[Calls, Work]:
        count = frames or setup.frames()
        width, mean = setup.width(units, count)
        layer = PackedLSTM(units, units, **setup.choice).to(setup.device, setup.dtype)
        x, mask = setup.random(setup.batch, count, units), setup.mask(width, units, count).mT
        zeros = setup.random(setup.batch, units) * 0

        def plain(k: int | None) -> Callable[[], Any]:
            theirs = layer.extract(1.0 if k in (None, -1) else k / units)
            theirs.batch_first = True
            return lambda: theirs(x)[0] * mask if k is None else theirs(x)[0]

        work = recurrence(setup.batch, count, units, (mean, _mean_square(width)), 4, units)
        return _calls(lambda: layer.run(x, width, [(zeros, zeros)]), plain, width), work

    return build


def _gru(units: int, groups: int, frames: int = 0) -> Callable[[Setup], tuple[Calls, Work]]:
    """Groups of units side by side, slimmed."""

    def build(setup: Setup) -> tuple[Calls, Work]:
        count = frames or setup.frames()
        width, mean = setup.width(units, count)
        sizes = ((3, units), (3, units), (3,), (3,))
        weights = [setup.random(groups, units, *size) for size in sizes]
        x, state = setup.random(setup.batch, count, groups * units), setup.random(groups, setup.batch, units)
        mask = setup.mask(width, units, count).mT

        def plain(k: int | None) -> Callable[[], Any]:
            k_units = units if k in (None, -1) else k
            grus = [nn.GRU(units, k_units, batch_first=True).to(setup.device, setup.dtype) for _ in range(groups)]

            def call() -> Any:
                outputs = [gru(part)[0] for gru, part in zip(grus, x.chunk(groups, dim=2), strict=True)]
                return torch.cat([out * mask for out in outputs] if k is None else outputs, dim=2)

            return call

        slim = lambda: ops.slim_gru(x, *weights, width, state, **setup.choice)  # noqa: E731
        work = recurrence(setup.batch, count, units, (mean, _mean_square(width)), 3, units, groups)
        return _calls(slim, plain, width), work

    return build


def _diagonal(setup: Setup) -> tuple[Calls, Work]:
    """The recurrence of a router; it has one width. torch has no such layer: its full GRU stands beside it."""
    units, count = 64, setup.frames()
    gates, weight = setup.random(setup.batch, count, 3, units), setup.random(3, units)
    bias, state = setup.random(3, units), setup.random(setup.batch, units)
    theirs, x = nn.GRU(units, units, batch_first=True).to(setup.device, setup.dtype), gates[:, :, 0].contiguous()
    rows = setup.batch * count
    work = Work(rows * 3 * units, rows * 4 * units)
    slim = lambda: ops.diagonal_gru(gates, weight, bias, state, backend=setup.backend)  # noqa: E731
    return {"slimse": slim, "full": lambda: theirs(x)}, work


def _network(setup: Setup) -> tuple[Calls, Work]:
    """The whole network; the least number of elements is that of its blocks, one after the other."""
    model, reference = _models(setup)
    noisy = setup.random(setup.batch, 1, int(setup.seconds * CONFIG.sample_rate))
    frames = model.geometry.frames(noisy.shape[2])
    uf: Any = setup.uf if setup.uf is not None else setup.ufs(frames)
    index = torch.full((setup.batch, frames), len(CONFIG.ufs) - 1, device=setup.device)
    index = index if setup.uf is not None else CONFIG.ufs.indices(uf)
    gates = F.one_hot(index, len(CONFIG.ufs)).to(setup.dtype)
    full = model.extract(1.0)
    calls: Calls = {
        "slimse": lambda: model(noisy, uf),
        "full": lambda: full(noisy),
        "masked": lambda: reference(noisy, gates),
    }
    if setup.uf is not None:
        sliced = model.extract(setup.uf)
        calls["sliced"] = lambda: sliced(noisy)
    work = Work(0, 0)
    for level in range(1, CONFIG.depth + 1):
        _, mean = setup.width(CONFIG.channels(level), positions(level, setup.seconds))
        for block in (encoder_block, decoder_block):
            work += block(level, setup.batch, setup.seconds, mean)
    # Of the resampling, one pass up and one down; its and the bottleneck's products as `slimse profile` counts them.
    channels, rate = CONFIG.channels(CONFIG.depth), CONFIG.resample
    bottleneck = setup.batch * frames * 2 * channels
    rest = Work(_unslimmed_macs() * noisy.numel(), bottleneck + 2 * (1 + rate) * noisy.numel())
    return calls, work + rest


def _models(setup: Setup) -> tuple[SlimModel, SlimModel]:
    """The network as it runs, and on references, with the same weights."""
    return _made(setup.device, setup.dtype, tuple(setup.choice.items()))


@functools.cache
def _made(device: str, dtype: torch.dtype, choice: tuple[tuple[str, str], ...]) -> tuple[SlimModel, SlimModel]:
    # Of weights made in inference mode the numba runtime would pack a copy at every call.
    with torch.inference_mode(False):
        model, reference = SlimModel(CONFIG, **dict(choice)), SlimModel(CONFIG, backend="reference")
        reference.load_state_dict(model.state_dict())
        return tuple(m.to(device, dtype).eval().requires_grad_(False) for m in (model, reference))  # type: ignore[return-value]


@functools.cache
def _unslimmed_macs() -> float:
    """Per sample."""
    costs = profile(SlimModel(CONFIG)).widths[0].blocks
    return sum(macs for name, macs in costs.items() if not name.startswith(("encoder", "decoder")))


def describe(
    case: Case,
    setup: Setup,
    implementation: str,
    work: Work,
    *,
    device: str = f"CPU ({platform.machine()}, 1 thread)",
    ceilings: Ceilings | None = None,
) -> dict[str, Any]:
    """What stands beside every time: the point, what it has to do at least, and where it ran."""
    line = work.seconds(setup.kind, ceilings) if ceilings is not None and work.macs else None
    return {
        "op": case.op,
        "label": case.label,
        "implementation": implementation,
        "uf": "mixture" if setup.uf is None else setup.uf,
        "batch": setup.batch,
        "seconds": setup.seconds,
        "kind": setup.kind,
        "macs": work.macs,
        "bytes": work.bytes(setup.kind),
        "roofline": line,
        "device": device,
        "torch": torch.__version__,
    }


BLOCKS = [
    *(Case("encoder_block", f"encoder {level}", _encoder(level)) for level in range(1, CONFIG.depth + 1)),
    *(Case("decoder_block", f"decoder {level}", _decoder(level)) for level in range(1, CONFIG.depth + 1)),
]
OPS = [
    Case("slim_conv1d", "slim_conv1d", _convolution),
    Case("slim_conv_transpose1d", "slim_conv_transpose1d", _transposed),
    Case("slim_linear_glu", "slim_linear_glu", _pointwise),
    Case("slim_lstm", "slim_lstm", _lstm(768), compiles=False),
    Case("slim_gru", "slim_gru", _gru(CONFIG.channels(CONFIG.depth) // CONFIG.groups, CONFIG.groups), compiles=False),
    Case("diagonal_gru", "diagonal_gru", _diagonal, compiles=False),
]
RECURRENT = [
    *(case for case in OPS if case.op in ("slim_gru", "slim_lstm")),
    Case("slim_gru", "GRU of 512 units, 64 steps", _gru(512, 1, 64), compiles=False),
    Case("slim_lstm", "LSTM of 512 units, 64 steps", _lstm(512, 64), compiles=False),
]
MODEL = [Case("model", "model", _network)]
UFS: list[float | None] = [*CONFIG.ufs, None]
