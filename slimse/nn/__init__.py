"""Layers of slimmable networks. Width is an argument of every forward, never an attribute."""

from .blocks import DecoderBlock, EncoderBlock
from .recurrent import GroupedGRU, SlimLSTM, SlimLSTMStack
from .resample import SincDownsample, SincUpsample

__all__ = ["DecoderBlock", "EncoderBlock", "GroupedGRU", "SincDownsample", "SincUpsample", "SlimLSTM", "SlimLSTMStack"]
