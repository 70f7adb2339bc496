"""What a model costs at each UF: multiply-accumulates, parameters, weight bytes, latency."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .model import SlimModel

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
    router_macs_per_sample: float | None = None
    """What choosing widths adds to any of them; None for a model without a router."""

    def macs_per_sample(self, ufs: Tensor) -> float:
        """Mean cost of frames that ran at ``ufs`` (any shape) by the router's choice, the router's own included."""
        cost = sum(width.macs_per_sample * (ufs == width.uf).float().mean().item() for width in self.widths)
        return cost + (self.router_macs_per_sample or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _count_calls(model: SlimModel, uf: float | None, frames: int) -> tuple[dict[str, int], int]:
    """MACs by module and weight bytes per frame of one offline call of ``frames`` frames; at UF None, of the router."""
    macs: dict[str, int] = defaultdict(int)
    weight_bytes = 0

    def counter(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal weight_bytes
            count, read = module.count(args, output)  # type: ignore[operator]
            macs[name] += count
            weight_bytes += read

        return hook

    modules = [(name.removeprefix("network."), module) for name, module in model.named_modules()]
    counted = [(name, module) for name, module in modules if hasattr(module, "count")]
    handles = [module.register_forward_hook(counter(name)) for name, module in counted]
    try:
        like = next(model.parameters())
        with torch.no_grad():
            budget = 1.0 if uf is None else None
            # Not `forward`, which may run compiled, past the hooks.
            model.finish(like.new_zeros(1, model.geometry.span(frames)), model.initial_state(), uf, budget)
    finally:
        for handle in handles:
            handle.remove()
    return macs, weight_bytes


def profile(model: SlimModel) -> ModelProfile:
    """Run ``model`` at each of its UFs and count what its modules did.

    Every module that multiplies reports each call by the positions it computed and the rows of the weights it read
    (``count``), so the figures follow the code. Element-wise operations are not counted, as is the custom.
    """
    widths = []
    for uf in model.ufs:
        blocks, read = _per_sample(model, uf)
        widths.append(WidthProfile(uf, sum(blocks.values()), read, blocks))
    latency = 1000 * model.geometry.latency / model.sample_rate if model.causal else None
    return ModelProfile(
        widths=tuple(widths),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sample_rate=model.sample_rate,
        hop=model.geometry.hop,
        latency_ms=latency,
        router_macs_per_sample=_per_sample(model, None)[0]["router"] if model.router else None,
    )


def _per_sample(model: SlimModel, uf: float | None) -> tuple[dict[str, float], int]:
    """MACs per sample by module, and weight bytes per frame."""
    (short, read), (long, _) = (_count_calls(model, uf, frames) for frames in _FRAMES)
    samples = (_FRAMES[1] - _FRAMES[0]) * model.geometry.hop
    return {name: (long[name] - short[name]) / samples for name in long}, read
