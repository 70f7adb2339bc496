"""Networks."""

from .config import PRESETS, RouterConfig, SlimDemucsConfig
from .demucs import SlimDemucs
from .denoiser import load_denoiser
from .frame_router import FrameRouter
from .plain import PlainDemucs
from .router import Router, RouterState
from .state import DemucsState

__all__ = [
    "PRESETS",
    "DemucsState",
    "FrameRouter",
    "PlainDemucs",
    "Router",
    "RouterConfig",
    "RouterState",
    "SlimDemucs",
    "SlimDemucsConfig",
    "load_denoiser",
]
