"""Tools for tests of networks, runtimes, layers and kernels, here and in packages that extend this one.

>>> from slimse.testing import assert_close, run_in_chunks, tiny_model
>>> model = tiny_model(router=True)
>>> noisy = torch.randn(1, 3000)
>>> streamed = run_in_chunks(Streamer(model, budget=0.3, streams=1), noisy, [77, 500])
>>> assert_close(streamed, model(noisy[:, None], budget=0.3)[:, 0])
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .config import PRESETS, ModelConfig
from .model import SlimModel
from .networks import NetworkConfig
from .router import RouterConfig

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""By dtype, the largest `relative_error` of two ways to compute the same, such as in chunks or on another runtime."""

TINY_ROUTER = RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4)
"""A router that is quick to run and to train; for hops that are multiples of 16."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of ``expected``; 0 where both are the same, NaN where one has a NaN."""
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0


def assert_close(actual: Tensor, expected: Tensor, limit: float | None = None, *, what: str = "result") -> None:
    """Fail unless two tensors have one shape and nearly the same values.

    Args:
        actual: what is tested.
        expected: what it is compared with.
        limit: largest `relative_error`; None for that of the dtype of ``actual`` in `TOLERANCES`.
        what: names it in the message.

    Raises:
        AssertionError: if not.
    """
    limit = TOLERANCES[actual.dtype] if limit is None else limit
    if actual.shape != expected.shape:
        raise AssertionError(f"{what} has shape {tuple(actual.shape)}: expected {tuple(expected.shape)}")
    error = relative_error(actual, expected)
    if not error <= limit:
        raise AssertionError(f"{what} is off by {error:.2e}: expected at most {limit:.0e}")


def tiny_model(
    config: ModelConfig | NetworkConfig | str = "small", *, router: bool = False, seed: int = 0, **options: Any
) -> SlimModel:
    """A small model with fixed random weights, for inference.

    Args:
        config: as of `slimse.SlimModel`.
        router: add a router, if there is none, that uses all of its widths on noise, which a fresh one does not.
        seed: of the weights.
        **options: of `slimse.SlimModel`.
    """
    config = PRESETS[config] if isinstance(config, str) else config
    config = config if isinstance(config, ModelConfig) else ModelConfig(config)
    if router and config.router is None:
        config = replace(config, router=TINY_ROUTER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SlimModel(config, **options).eval().requires_grad_(False)
        if router:
            assert model.router is not None
            model.router.output.weight.normal_(std=4.0)
            model.router.bias_ih.normal_()
            model.router.bias_width.normal_(-1.5)
    return model


def poison(tensor: Tensor, active: int, axis: int = -1) -> Tensor:
    """A copy with NaN behind the first ``active`` entries along ``axis``, as in channels that no width may read."""
    copy = tensor.detach().clone()
    copy.narrow(axis, active, copy.shape[axis] - active).fill_(float("nan"))
    return copy


def run_in_chunks(streamer: Any, noisy: Tensor, sizes: Sequence[int]) -> Tensor:
    """The output of a `slimse.Streamer` for a whole signal.

    Args:
        streamer: in its initial state.
        noisy: ``[n]``, or ``[streams, n]``.
        sizes: samples of the chunks, over and over.
    """
    outputs, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= noisy.shape[-1]:
            break
        outputs.append(streamer.feed(noisy[..., start : start + size]))
        start += size
    return torch.cat([*outputs, streamer.flush()], dim=-1)


@torch.no_grad()
def run_frames(model: SlimModel, noisy: Tensor, ufs: Tensor) -> Tensor:
    """``[B, n]`` through `SlimModel.step` one frame at a time, frame ``t`` at ``ufs[:, t]``, and `SlimModel.finish`."""
    state, outputs, start, frame = model.initial_state(len(noisy)), [], 0, 0
    while start + (used := model.geometry.hop if frame else model.geometry.first) <= noisy.shape[1]:
        out, state = model.step(noisy[:, start : start + used], state, ufs[:, frame])
        outputs.append(out)
        start, frame = start + used, frame + 1
    left = ufs[:, frame:] if frame < ufs.shape[1] else ufs[:, -1]
    return torch.cat([*outputs, model.finish(noisy[:, start:], state, left)], dim=1)
