"""Sinc resampling by two inside the network, offline and in pieces with the same result.

The filter is the one that the original DEMUCS denoiser uses (a Hann-windowed sinc with 56 zeros on either side),
so its checkpoints keep their sound. It looks ahead; `LOOKAHEAD` says how far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ..ops import check_backend, sinc_resample

ZEROS = 56
TAPS = 2 * ZEROS
LOOKAHEAD = ZEROS
"""Samples at the lower rate after a position that `SincUpsample` reads (`SincDownsample`: one less)."""
_BLOCK = 64


def filter_taps() -> Tensor:
    """The half-sample filter, ``[TAPS]`` in float64."""
    time = torch.arange(TAPS, dtype=torch.float64) - ZEROS + 0.5
    window = torch.hann_window(4 * ZEROS + 1, periodic=False, dtype=torch.float64)[1::2]
    return torch.sinc(time) * window


def _filter_matrix() -> Tensor:
    """``[TAPS + _BLOCK - 1, _BLOCK]`` in float64: column ``j`` holds the half-sample filter shifted down by ``j``."""
    taps = filter_taps()
    matrix = torch.zeros(TAPS + _BLOCK - 1, _BLOCK, dtype=torch.float64)
    for column in range(_BLOCK):
        matrix[column : column + TAPS, column] = taps
    return matrix


class _HalfSampleFilter(nn.Module):
    """The filter as a buffer: compilers see a constant, and CUDA graphs find it on the device.

    It stays in at least float32 when the module around it moves to half precision.
    """

    filters: Tensor

    def __init__(self, *, backend: str = "auto") -> None:
        super().__init__()
        check_backend(backend, "ieee")
        self.backend = backend
        self.register_buffer("filters", _filter_matrix().float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        dtype = torch.promote_types(self.filters.dtype, torch.float32)
        if not self.filters.is_meta:
            # From float64 again: a cast to half precision and back would leave rounding noise 50 dB below the signal.
            self.filters = _filter_matrix().to(self.filters.device, dtype)
        return self

    def resample(self, x: Tensor, history: Tensor, *, up: bool, final: bool) -> tuple[Tensor, Tensor]:
        """`slimse.ops.sinc_resample` with these filters."""
        return sinc_resample(x, history, self.filters, up, final, backend=self.backend)


class SincUpsample(_HalfSampleFilter):
    """Double the rate.

    Shape:
        ``[B, n]`` and a buffer (see `initial_buffer`) to ``[B, 2 m]`` and the new buffer; over a whole signal, the last
        call being ``final``, exactly twice as many samples come out as went in.
    """

    def initial_buffer(self, like: Tensor) -> Tensor:
        """What precedes a signal: silence. A buffer of no samples stands for it as well."""
        return like.new_zeros(like.shape[0], ZEROS - 1)

    def forward(self, x: Tensor, buffer: Tensor, *, final: bool) -> tuple[Tensor, Tensor]:
        """Return all samples whose look-ahead has arrived; ``final`` puts silence after the signal."""
        return self.resample(x, buffer, up=True, final=final)

    def count(self, args: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made (`TAPS` for every other output); no trained weights."""
        return TAPS * output[0].shape[1] // 2, 0


class SincDownsample(_HalfSampleFilter):
    """Halve the rate: the inverse of `SincUpsample`.

    Shape:
        ``[B, n]`` and a buffer to ``[B, m]`` and the new buffer; over a whole signal ``ceil(n / 2)`` samples.
    """

    def initial_buffer(self, like: Tensor) -> Tensor:
        """What precedes a signal: silence. A buffer of no samples stands for it as well."""
        return like.new_zeros(like.shape[0], 2 * ZEROS)

    def forward(self, x: Tensor, buffer: Tensor, *, final: bool) -> tuple[Tensor, Tensor]:
        """Return all samples whose look-ahead has arrived; ``final`` puts silence after the signal."""
        return self.resample(x, buffer, up=False, final=final)

    def count(self, args: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made (`TAPS` per output); no trained weights."""
        return TAPS * output[0].shape[1], 0
