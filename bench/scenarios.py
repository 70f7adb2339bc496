"""What is timed as users run it: a router that chooses the widths, a training step, a tick of many live streams."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from bench.cases import Calls, Case
from bench.points import Setup
from bench.roofline import CONFIG, Work
from slimse import PRESETS, SlimModel
from slimse.serving import StreamBatch

NO_WORK = Work(0, 0)
"""Of a call whose least time is not counted."""


@functools.cache
def _routed(device: str, choice: tuple[tuple[str, str], ...]) -> SlimModel:
    return SlimModel(PRESETS["dynamic"], **dict(choice)).to(device).eval().requires_grad_(False)


def _signal(setup: Setup) -> torch.Tensor:
    """``[batch, 1, samples]``: bursts of noise, over which a router's choice changes."""
    samples = int(setup.seconds * CONFIG.sample_rate)
    loud = F.interpolate(torch.rand(setup.batch, 1, 1 + samples // 2000, device=setup.device), samples)
    return 0.1 * loud * torch.randn(setup.batch, 1, samples, device=setup.device)


def _router(setup: Setup) -> tuple[Calls, Work]:
    """A forward call whose router chooses the widths, beside the same on plain PyTorch."""
    model, plain = (
        _routed(setup.device, tuple(setup.choice.items())),
        _routed(setup.device, (("backend", "reference"),)),
    )
    noisy = _signal(setup)
    calls = {"slimse": lambda: model(noisy, budget=0.25), "masked": lambda: plain(noisy, budget=0.25)}
    return calls, NO_WORK


def _training(setup: Setup) -> tuple[Calls, Work]:
    """Forward and backward pass of a loss at the widest and two narrow widths, a width per clip."""
    noisy = _signal(setup)
    ufs = torch.tensor([1.0, 0.25, 0.125], device=setup.device).repeat(setup.batch)[: setup.batch]

    def step(model: SlimModel) -> Any:
        def call() -> None:
            with torch.enable_grad(), torch.autocast(setup.device, setup.dtype, enabled=setup.dtype != torch.float32):
                model(noisy, ufs).abs().mean().backward()
            for parameter in model.parameters():
                parameter.grad = None

        return call

    models = {"slimse": setup.choice, "masked": {"backend": "reference"}}
    return {name: step(SlimModel(CONFIG, **choice).to(setup.device)) for name, choice in models.items()}, NO_WORK


def _tick(setup: Setup) -> tuple[Calls, Work]:
    """A frame of every stream; widths as a router picks them."""
    model = _routed(setup.device, tuple(setup.choice.items()))
    batch = StreamBatch(model, setup.batch)
    for uf in replace(setup, batch=1).ufs(setup.batch).flatten().tolist():
        batch.join(min(model.ufs, key=lambda known: abs(known - uf)))
    samples = 0.05 * torch.randn(setup.batch, model.geometry.hop, device=setup.device)
    # All have had their first frames, which run beside the others, after these.
    for _ in range(8):
        batch.tick(samples)
    return {"slimse": lambda: batch.tick(samples)}, NO_WORK


ROUTER = [Case("model", "router end to end", _router, compiles=False)]
TRAINING = [Case("model", "training step", _training, compiles=False, captured=False)]
TICK = [Case("serving", "tick", _tick, compiles=False, captured=False)]
