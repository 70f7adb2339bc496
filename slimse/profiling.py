"""What a model costs at each UF: multiply-accumulates, parameters, weight bytes, latency."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .models import SlimDemucs

_FRAMES = (2, 10)
"""Two call lengths in frames; the difference between them is free of the first frame's long run."""


@dataclass(frozen=True)
class WidthProfile:
    """Cost of one UF."""

    uf: float
    macs_per_sample: float
    """Multiply-accumulates per input sample, in a long signal."""
    weight_bytes_per_frame: int
    """Bytes of weights and biases that one frame reads."""
    blocks: dict[str, float]
    """Share of ``macs_per_sample`` of each module, by its name in the model."""


@dataclass(frozen=True)
class ModelProfile:
    """Cost of a model."""

    widths: tuple[WidthProfile, ...]
    """One per UF, rising."""
    parameters: int
    sample_rate: int
    hop: int
    """Input samples per frame."""
    latency_ms: float | None
    """Algorithmic latency, buffering of a frame included; None for a bidirectional model."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _count_calls(model: SlimDemucs, uf: float, frames: int) -> tuple[dict[str, int], int]:
    """MACs by module and weight bytes per frame of one offline call that spans ``frames`` frames."""
    macs: dict[str, int] = defaultdict(int)
    weight_bytes = 0

    def counter(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal weight_bytes
            count, read = module.count(args, output)  # type: ignore[operator]
            macs[name] += count
            weight_bytes += read

        return hook

    counted = [(name, module) for name, module in model.named_modules() if hasattr(module, "count")]
    handles = [module.register_forward_hook(counter(name)) for name, module in counted]
    try:
        like = next(model.parameters())
        with torch.no_grad():
            model(like.new_zeros(1, 1, model.receptive_samples(frames)), uf, backend="torch")
    finally:
        for handle in handles:
            handle.remove()
    return macs, weight_bytes


def profile(model: SlimDemucs) -> ModelProfile:
    """Run ``model`` at each of its UFs and count what its modules did.

    Every module that multiplies reports each call by the positions it computed and the rows of the weights it read
    (``count``), so the figures follow the code. Element-wise operations are not counted, as is the custom.
    """
    widths = []
    for uf in model.config.ufs:
        (short, read), (long, _) = (_count_calls(model, uf, frames) for frames in _FRAMES)
        samples = (_FRAMES[1] - _FRAMES[0]) * model.hop
        blocks = {name: (long[name] - short[name]) / samples for name in long}
        widths.append(WidthProfile(uf, sum(blocks.values()), read, blocks))
    latency = 1000 * model.latency / model.config.sample_rate if model.config.causal else None
    return ModelProfile(
        widths=tuple(widths),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sample_rate=model.config.sample_rate,
        hop=model.hop,
        latency_ms=latency,
    )
