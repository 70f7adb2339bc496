"""The slimmable waveform U-Net."""

from .config import SlimDemucsConfig
from .network import DemucsState, SlimDemucs
from .plain import PlainDemucs, PlainDemucsConfig

__all__ = ["DemucsState", "PlainDemucs", "PlainDemucsConfig", "SlimDemucs", "SlimDemucsConfig"]
