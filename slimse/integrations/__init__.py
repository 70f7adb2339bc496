"""SlimSE inside other frameworks: thin adapters, each of which needs the package of its framework."""

from __future__ import annotations

from functools import cache

from ..checkpoint import load
from ..model import SlimModel


@cache
def shared_model() -> SlimModel:
    """The bundled weights, loaded once per process, which any number of sessions share."""
    return load()
