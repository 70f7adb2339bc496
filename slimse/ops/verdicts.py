"""First use of a kernel on a device: compared once with the reference, so that nobody runs an unchecked kernel.

With ``backend="auto"`` an op asks `allows` before it launches. A kernel is known by what it is compiled for: op, number
format, shapes of weights, widths up to a power of two, and whether widths differ between rows. The first call of each
runs it on a small random input and compares all elements with the reference in float64. Verdicts are kept for the
process and in a file per device, versions and kernel code, below `folder`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..kernels.rows import FrameWidths, frame_orders
from .registry import OpSpec, Values

LIMITS = {"float32 ieee": 1e-3, "float32 tf32x3": 1e-3, "float32 tf32": 0.03, "float16": 0.03, "bfloat16": 0.2}
"""Largest error of an element over the root mean square of all: far above rounding, far below a wrong element."""

_known: dict[str, str] = {}
"""By key, what is wrong with a kernel; nothing for one that may run."""
_warned: set[str] = set()


def number_format(dtype: torch.dtype, precision: str) -> str:
    """Name of the way in which products are computed."""
    name = str(dtype).removeprefix("torch.")
    return f"{name} {precision}" if dtype == torch.float32 else name


def folder() -> Path:
    """Where verdicts are kept: ``slimse`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimse"


@functools.cache
def _code() -> str:
    """A digest of the kernels, the launchers and the references."""
    root = Path(__file__).resolve().parent
    kernels = Path(str(importlib.import_module("slimse.kernels").__file__)).parent
    files = sorted([*root.glob("*.py"), *kernels.glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


@functools.cache
def _file(device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = [f"torch-{torch.__version__}"]
    with contextlib.suppress(PackageNotFoundError):
        found.append(f"triton-{version('triton')}")
    words = "_".join([name, *found, _code()])
    return folder() / "kernels" / f"{''.join(c if c.isalnum() or c in '.-_' else '-' for c in words)}.json"


def recorded(device: torch.device) -> dict[str, str]:
    """Verdicts of a device with these versions: by key, what is wrong, or nothing."""
    try:
        return json.loads(_file(device).read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def _keep(key: str, reason: str, device: torch.device) -> None:
    _known[key] = reason
    path = _file(device)
    # Without a folder to write to, every process checks for itself.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps({**recorded(device), key: reason}, indent=0) + "\n")
        part.replace(path)


def forget(device: torch.device | None = None) -> None:
    """Read verdicts again from disk, and warn again; with a device, delete those on disk, so that kernels are checked.

    Not for use while others call ops.
    """
    _known.clear()
    _warned.clear()
    _file.cache_clear()
    if device is not None:
        _file(device).unlink(missing_ok=True)


def _extent(axis: str, size: int, spec: OpSpec) -> int:
    """Of an axis in the small input: two items, and as many positions as fill a tile."""
    return min(size, {"B": 2, "T": spec.steps}.get(axis, size))


def _shape(name: str, value: Tensor, spec: OpSpec) -> tuple[int, ...]:
    axes = spec.axes.get(name, "").ljust(value.ndim, "_")
    return tuple(_extent(axis, size, spec) for axis, size in zip(axes, value.shape, strict=True))


def key_of(spec: OpSpec, direction: str, values: Values, precision: str, needs: Sequence[bool] = ()) -> str:
    """What a kernel is compiled for, in words."""
    x = next(iter(values.values()))
    words = [f"{spec.name} {direction} {number_format(x.dtype, precision)}"]
    for name, value in values.items():
        if isinstance(value, FrameWidths):
            words.append(f"frames of {value.rate} from {value.lead}{'' if value.orders is None else ' sorted'}")
        elif isinstance(value, Tensor):
            words.append("rows" if name in spec.bounds else "x".join(map(str, _shape(name, value, spec))))
        elif name in spec.bounds:
            # Tiles grow with the width in powers of two.
            words.append(f"<={1 << max(int(value) - 1, 0).bit_length()}")
        elif not isinstance(value, tuple):
            words.append(str(value))
    return " ".join([*words, *("-+"[need] for need in needs)])


def sample(spec: OpSpec, values: Values, *, decided: bool = False) -> dict[str, Any]:
    """Random arguments like ``values``, with few items and positions.

    Args:
        spec: of the op.
        values: arguments of the reference.
        decided: whether biases are large beside what they are added to, so that no rounding switches a ReLU.
    """
    x = next(iter(values.values()))
    generator = torch.Generator(x.device).manual_seed(0)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=x.device)

    def like(name: str, value: Tensor) -> Tensor:
        shape = _shape(name, value, spec)
        if "bias" in name:
            found = random(shape)
            return ((found.sign() + 0.1 * found) if decided else 0.3 * found).to(value.dtype)
        if "weight" in name:
            return (random(shape) * max(shape[-1], 1) ** -0.5).to(value.dtype)
        if name in spec.positive:
            return random(shape).abs().to(value.dtype)
        return (random(shape) * (0.05 if decided else 1)).to(value.dtype)

    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            found[name] = value if name in spec.bounds else like(name, value)
        else:
            state = type(value) is tuple and isinstance(value[0], Tensor)
            found[name] = tuple(like(name, part) for part in value) if state else value
    batch, time = next(iter(found.values())).shape[:2]
    for name, (bounding, axis) in spec.bounds.items():
        given = values[name]
        if isinstance(given, Tensor | FrameWidths):
            positions = spec.shapes(**{**found, **dict.fromkeys(spec.bounds, 0)})[0][1]
            count = int(positions) if "P" in spec.axes[name] else time
            if isinstance(given, FrameWidths):
                found[name] = _few_frames(given, batch, count, generator)
                continue
            shape, most = (batch, count), found[bounding].shape[axis]
            widths = torch.randint(most + 1, shape, generator=generator, device=x.device)
            found[name] = widths.to(given.dtype)
    return found


def _few_frames(like: FrameWidths, batch: int, positions: int, generator: torch.Generator) -> FrameWidths:
    """Random widths by as many frames as own so many positions, sorted if those of ``like`` are."""
    frames, widths = max(-(-(positions - like.lead - 1) // like.rate) + 1, 1), len(like.counts)
    choice = torch.randint(widths, (batch, frames), generator=generator, device=like.counts.device).int()
    return like._replace(choice=choice, orders=None if like.orders is None else frame_orders(choice, widths))


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within, allocated memory is full of NaN, so that what a kernel forgets to write shows."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def complaint(ours: Sequence[Tensor | None], exact: Sequence[Tensor | None], limit: float) -> str:
    """What is wrong with results, or nothing."""
    for place, (mine, true) in enumerate(zip(ours, exact, strict=True)):
        if true is None or true.numel() == 0:
            continue
        if mine is None or mine.shape != true.shape:
            return f"result {place} has shape {None if mine is None else tuple(mine.shape)}, not {tuple(true.shape)}"
        scale = true.square().mean().sqrt().clamp(min=1e-30)
        error = float((mine.double() - true).abs().max() / scale)
        if not error <= limit:
            return f"an element of result {place} is off by {error:.2g} of their root mean square (limit {limit:g})"
    return ""


def to_double(value: Any) -> Any:
    """Floating tensors in float64, anything else as it is."""
    return pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, value
    )


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def allows(spec: OpSpec, key: str, device: torch.device, check: Callable[[], str]) -> bool:
    """Whether the kernel of ``key`` may run; on its first use, `check` says what is wrong with it, or nothing.

    A `check` cannot run while a CUDA graph is captured: then a kernel that was never checked does not run.
    """
    reason = _known.get(key)
    if reason is None:
        reason = recorded(device).get(key)
        if reason is not None:
            _known[key] = reason
    if reason is None:
        if _capturing(device):
            warn(spec, "its first use is inside of a CUDA graph, where it cannot be checked: call it once before")
            return False
        with torch.no_grad():
            reason = check()
        _keep(key, reason, device)
    if reason:
        warn(spec, reason)
    return not reason


def failed(spec: OpSpec, key: str, device: torch.device, error: Exception) -> None:
    """Note that a kernel did not run, and warn."""
    reason = describe(error)
    _keep(key, reason, device)
    warn(spec, reason)


def describe(error: Exception) -> str:
    """An exception in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def warn(spec: OpSpec, reason: str) -> None:
    """One warning per op."""
    if spec.name not in _warned:
        _warned.add(spec.name)
        message = f"slimse.ops.{spec.name} runs in plain PyTorch on this device: {reason}. See `slimse doctor`"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def summary(device: torch.device) -> dict[str, str]:
    """By op, how many of its kernels were checked on a device, and what is wrong with the first that may not run."""
    found: dict[str, list[str]] = {}
    for key, reason in {**recorded(device), **_known}.items():
        found.setdefault(key.split()[0], []).append(reason)
    told = {}
    for name, reasons in sorted(found.items()):
        bad = [reason for reason in reasons if reason]
        told[name] = f"{len(reasons) - len(bad)} of {len(reasons)} kernels as the reference"
        told[name] += f"; plain PyTorch for the others: {bad[0]}" if bad else ""
    return told
