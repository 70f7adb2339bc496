"""SlimSE: speech enhancement whose cost follows the difficulty of the sound.

>>> import slimse
>>> model = slimse.load()                                  # doctest: +SKIP
>>> enhanced = slimse.enhance(noisy, sample_rate, uf=0.25)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from .checkpoint import load, save
from .config import PRESETS, ModelConfig
from .denoiser import load_denoiser
from .frame_router import FrameRouter
from .model import SlimModel
from .networks import SlimDemucsConfig
from .slimmify import at, calibrate, extract, load_slimmed, save_slimmed, slimmify
from .streaming import Streamer
from .width import WidthSet

if TYPE_CHECKING:
    from .audio.enhance import enhance
    from .export.streamer import OnnxStreamer as OnnxStreamer

__all__ = [
    "PRESETS",
    "FrameRouter",
    "ModelConfig",
    "SlimDemucsConfig",
    "SlimModel",
    "Streamer",
    "WidthSet",
    "at",
    "calibrate",
    "enhance",
    "extract",
    "load",
    "load_denoiser",
    "load_slimmed",
    "save",
    "save_slimmed",
    "slimmify",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import on first use what needs more packages than a model alone: those of audio, and of the extra ``onnx``."""
    if name == "enhance":
        from .audio.enhance import enhance

        return enhance
    if name == "OnnxStreamer":
        from .export.streamer import OnnxStreamer

        return OnnxStreamer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
