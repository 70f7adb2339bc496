"""Models for commands that run them at once."""

from __future__ import annotations

import threading

import torch
import typer

from ..checkpoint import load
from ..models import SlimDemucs

_PATIENCE = 3.0
"""Seconds after which the user is told what takes so long."""
_MESSAGE = "compiling the network for this machine, up to a minute; later calls load it from disk"


def load_ready(weights: str, device: str | torch.device = "cpu") -> SlimDemucs:
    """As `slimse.load`, and run one sample: what has to be compiled is, and if that takes long, the user is told."""
    model = load(weights, device=device)
    timer = threading.Timer(_PATIENCE, typer.echo, [_MESSAGE], {"err": True})
    timer.start()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 1, 1, device=device), model.config.ufs[0])
    finally:
        timer.cancel()
    return model
