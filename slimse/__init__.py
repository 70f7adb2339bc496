"""SlimSE: real-time speech enhancement with input-adaptive compute.

>>> import slimse
>>> model = slimse.load()                                  # doctest: +SKIP
>>> enhanced = slimse.enhance(noisy, sample_rate, uf=0.25)  # doctest: +SKIP
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audio.batch import enhance_batch
    from .audio.enhance import enhance, enhance_file
    from .checkpoint import from_pretrained, load, save
    from .config import PRESETS, ModelConfig
    from .denoiser import load_denoiser
    from .export.streamer import OnnxStreamer as OnnxStreamer  # not in __all__: it needs an extra
    from .frame_router import FrameRouter
    from .model import SlimModel
    from .networks import SlimDemucsConfig
    from .sharing import push_to_hub, save_pretrained
    from .slimmify import at, calibrate, extract, load_slimmed, save_slimmed, slimmify
    from .streaming import Streamer
    from .width import WidthSet

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
    "enhance_batch",
    "enhance_file",
    "extract",
    "from_pretrained",
    "load",
    "load_denoiser",
    "load_slimmed",
    "push_to_hub",
    "save",
    "save_pretrained",
    "save_slimmed",
    "slimmify",
]
__version__ = "0.1.0"

_MODULES = {
    "audio.batch": ("enhance_batch",),
    "audio.enhance": ("enhance", "enhance_file"),
    "checkpoint": ("from_pretrained", "load", "save"),
    "config": ("PRESETS", "ModelConfig"),
    "denoiser": ("load_denoiser",),
    "export.streamer": ("OnnxStreamer",),
    "frame_router": ("FrameRouter",),
    "model": ("SlimModel",),
    "networks": ("SlimDemucsConfig",),
    "sharing": ("push_to_hub", "save_pretrained"),
    "slimmify": ("at", "calibrate", "extract", "load_slimmed", "save_slimmed", "slimmify"),
    "streaming": ("Streamer",),
    "width": ("WidthSet",),
}
"""Where the public names are. They are imported on first use: torch takes a second, and the command line's help and
usage errors need none of them; a model alone needs no audio libraries."""
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_HOMES[name]}", __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    """Public names, imported or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `slimse.slimmify` a function: an import of the package of that name would put that in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "slimmify" and isinstance(value, ModuleType):
            value = value.slimmify
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
