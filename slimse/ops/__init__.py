"""Slimmed operations: plain-torch twins that define what every kernel must compute."""

from .blocks import decoder_block, encoder_block
from .recurrent import grouped_gru, slim_lstm

__all__ = ["decoder_block", "encoder_block", "grouped_gru", "slim_lstm"]
