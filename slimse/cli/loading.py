"""What commands do before they run a model at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ..model import SlimModel

_PATIENCE = 3.0
"""Seconds after which the user is told what takes so long."""
_MESSAGE = "compiling the network for this machine, up to a minute; later calls load it from disk"


def make_ready(model: SlimModel) -> SlimModel:
    """Run one sample, so that what has to be compiled is; if that takes long, the user is told. Returns the model."""
    import torch

    timer = threading.Timer(_PATIENCE, typer.echo, [_MESSAGE], {"err": True})
    failed: list[Exception] = []

    def run() -> None:
        try:
            with torch.no_grad():
                model(next(model.parameters()).new_zeros(1, 1, 1), model.ufs[0])
        except Exception as error:
            failed.append(error)

    # Signals interrupt the main thread alone. Inside of a callback from the compiler, the interrupt would be lost.
    thread = threading.Thread(target=run, daemon=True)
    timer.start()
    try:
        thread.start()
        thread.join()
    finally:
        timer.cancel()
    if failed:
        raise failed[0]
    return model
