"""Networks."""

from .config import PRESETS, RouterConfig, SlimDemucsConfig
from .demucs import DemucsState, SlimDemucs
from .denoiser import load_denoiser
from .plain import PlainDemucs
from .router import Router, RouterState

__all__ = [
    "PRESETS",
    "DemucsState",
    "PlainDemucs",
    "Router",
    "RouterConfig",
    "RouterState",
    "SlimDemucs",
    "SlimDemucsConfig",
    "load_denoiser",
]
