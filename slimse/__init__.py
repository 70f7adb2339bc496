"""SlimSE: speech enhancement whose cost follows the difficulty of the sound.

>>> import slimse
>>> model = slimse.load()                                  # doctest: +SKIP
>>> enhanced = slimse.enhance(noisy, sample_rate, uf=0.25)  # doctest: +SKIP
"""

from .checkpoint import load, save
from .models import PRESETS, PlainDemucs, SlimDemucs, SlimDemucsConfig, load_denoiser
from .streaming import Streamer
from .width import WidthSet

__all__ = [
    "PRESETS",
    "PlainDemucs",
    "SlimDemucs",
    "SlimDemucsConfig",
    "Streamer",
    "WidthSet",
    "load",
    "load_denoiser",
    "save",
]
__version__ = "0.1.0"
