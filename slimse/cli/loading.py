"""What commands do before they run a model at once."""

from __future__ import annotations

import threading

import torch
import typer

from ..model import SlimModel

_PATIENCE = 3.0
"""Seconds after which the user is told what takes so long."""
_MESSAGE = "compiling the network for this machine, up to a minute; later calls load it from disk"


def make_ready(model: SlimModel) -> SlimModel:
    """Run one sample, so that what has to be compiled is; if that takes long, the user is told. Returns the model."""
    timer = threading.Timer(_PATIENCE, typer.echo, [_MESSAGE], {"err": True})
    timer.start()
    try:
        with torch.no_grad():
            model(next(model.parameters()).new_zeros(1, 1, 1), model.ufs[0])
    finally:
        timer.cancel()
    return model
