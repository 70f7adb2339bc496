"""Networks."""

from .config import PRESETS, SlimDemucsConfig
from .demucs import DemucsState, SlimDemucs
from .denoiser import load_denoiser
from .plain import PlainDemucs

__all__ = ["PRESETS", "DemucsState", "PlainDemucs", "SlimDemucs", "SlimDemucsConfig", "load_denoiser"]
