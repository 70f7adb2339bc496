"""Slimmed operations: plain-torch twins that define what every kernel must compute."""

from .blocks import decoder_block, encoder_block
from .convolution import slim_conv1d, slim_conv_transpose1d, slim_linear_glu
from .recurrent import diagonal_gru, slim_gru, slim_lstm

__all__ = [
    "decoder_block",
    "diagonal_gru",
    "encoder_block",
    "slim_conv1d",
    "slim_conv_transpose1d",
    "slim_gru",
    "slim_linear_glu",
    "slim_lstm",
]
