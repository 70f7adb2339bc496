"""Layers of slimmable networks. Width is an argument of every forward, never an attribute."""

from .blocks import DecoderBlock, EncoderBlock
from .layers import SlimConv1d, SlimConvTranspose1d, SlimLinear
from .level import LevelState, RunningLevel
from .recurrent import GroupedGRU, SlimGRU, SlimLSTM, SlimLSTMStack
from .resample import SincDownsample, SincUpsample

__all__ = [
    "DecoderBlock",
    "EncoderBlock",
    "GroupedGRU",
    "LevelState",
    "RunningLevel",
    "SincDownsample",
    "SincUpsample",
    "SlimConv1d",
    "SlimConvTranspose1d",
    "SlimGRU",
    "SlimLSTM",
    "SlimLSTMStack",
    "SlimLinear",
]
