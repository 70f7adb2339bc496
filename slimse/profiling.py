"""What a model costs at each UF: multiply-accumulates, parameters, weight bytes, latency."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .model import SlimModel
from .nn import SlimLayer
from .nn.context import current_uf

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
            own: Any = getattr(module, "count", None)
            count, read = own(args, output) if own else _count_layer(module, args, output)
            macs[name] += count
            weight_bytes += read

        return hook

    modules = [(name.removeprefix("network."), module) for name, module in model.named_modules()]
    counted = [(name, module) for name, module in modules if hasattr(module, "count")]
    own = tuple(f"{name}." for name, _ in counted)
    counted += [(name, one) for name, one in modules if _is_layer(one) and not f"{name}.".startswith(own)]
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


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


def _is_layer(module: nn.Module) -> bool:
    """Whether `_count_layer` knows it."""
    return isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear, nn.LSTM, nn.GRU))


def _count_layer(module: nn.Module, args: Any, output: Any) -> tuple[int, int]:
    """MACs of a call of a layer of `torch.nn`, or of a slimmable one at the UF around, and weight bytes read."""
    weights = (
        module._active(float(current_uf()))[1] if isinstance(module, SlimLayer) else [*module._parameters.values()]
    )
    out = output[0] if isinstance(output, tuple) else output
    # A product per output position, or of a transposed convolution per input position.
    seen = args[0] if isinstance(module, _TRANSPOSED) else out
    channels = seen.shape[1 if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)) else -1]
    positions = seen.numel() // channels
    found = [weight for weight in weights if weight is not None]
    # Biases have an axis less.
    most = max(weight.ndim for weight in found)
    macs = positions * sum(weight.numel() for weight in found if weight.ndim == most)
    return macs, sum(weight.numel() * weight.element_size() for weight in found)


def profile(model: SlimModel) -> ModelProfile:
    """Run ``model`` at each of its UFs and count what its modules did.

    Every module that multiplies reports each call by the positions it computed and the rows of the weights it read
    (``count``), so the figures follow the code. Layers of `torch.nn` outside of such modules are counted by their
    weights. Element-wise operations are not counted, as is the custom.
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
