"""What a stream remembers between two steps."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .router import RouterState


class DemucsState(NamedTuple):
    """All that a stream remembers between two steps; every tensor has the streams as its leading (or second) axis.

    It is a value: `SlimDemucs.step` returns a new one and leaves the old as it was. Copy it, save it
    (`torch.save`), go back to it. Lengths along time differ between a fresh state and one that has seen its first
    frame, and are constant from then on.
    """

    up: tuple[Tensor, ...]
    """Per up-sampling stage, samples that later outputs need: ``[B, n]``."""
    encoder: tuple[Tensor, ...]
    """Per level, inputs that later windows share: ``[B, n, C_in]``."""
    skip: tuple[Tensor, ...]
    """Per level, encoder outputs that the decoder has not used yet: ``[B, n, C]``."""
    rnn: tuple[Tensor, ...]
    """Grouped GRU: ``[M, B, H]``. LSTM: ``h`` and ``c`` of every layer, ``[B, H]`` each."""
    decoder: tuple[Tensor, ...]
    """Per level, shallowest first, outputs that await an overlap: ``[B, K - S, C_out]`` (empty at the start)."""
    down: tuple[Tensor, ...]
    """Per down-sampling stage, samples that later outputs need: ``[B, n]``."""
    level: tuple[Tensor, ...]
    """Of a normalising model, ``[B, 1]`` each: mean square so far and samples seen, or one given deviation."""
    router: RouterState | tuple[()]
    """Of a model with a router, which hears the frames that it decides and no others."""
    samples: int
    """Input samples per stream so far, 0 in a fresh state."""
