"""Layers of slimmable networks. Width is an argument of every forward, never an attribute."""

from .attention import SlimMultiheadAttention
from .axis import Axis, Segment
from .batchnorm import SlimBatchNorm1d, SlimBatchNorm2d
from .blocks import DecoderBlock, EncoderBlock
from .bottleneck import GroupedGRU, PackedLSTM, SlimLSTMStack
from .convolution import SlimConv1d, SlimConv2d, SlimConvTranspose1d, SlimConvTranspose2d
from .layers import SlimEmbedding, SlimLayer, SlimLinear, SlimPReLU
from .level import LevelState, RunningLevel
from .norms import (
    SlimGroupNorm,
    SlimInstanceNorm1d,
    SlimInstanceNorm2d,
    SlimLayerNorm,
    SlimRMSNorm,
)
from .recurrent import SlimGRU, SlimLSTM
from .resample import SincDownsample, SincUpsample

__all__ = [
    "Axis",
    "DecoderBlock",
    "EncoderBlock",
    "GroupedGRU",
    "LevelState",
    "PackedLSTM",
    "RunningLevel",
    "Segment",
    "SincDownsample",
    "SincUpsample",
    "SlimBatchNorm1d",
    "SlimBatchNorm2d",
    "SlimConv1d",
    "SlimConv2d",
    "SlimConvTranspose1d",
    "SlimConvTranspose2d",
    "SlimEmbedding",
    "SlimGRU",
    "SlimGroupNorm",
    "SlimInstanceNorm1d",
    "SlimInstanceNorm2d",
    "SlimLSTM",
    "SlimLSTMStack",
    "SlimLayer",
    "SlimLayerNorm",
    "SlimLinear",
    "SlimMultiheadAttention",
    "SlimPReLU",
    "SlimRMSNorm",
]
