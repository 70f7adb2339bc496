"""Sinc resampling by two inside the network, offline and in pieces with the same result.

The filter is the one that the original DEMUCS denoiser uses (a Hann-windowed sinc with 56 zeros on either side),
so its checkpoints keep their sound. It looks ahead; `LOOKAHEAD` says how far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

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
    """``[TAPS + _BLOCK - 1, _BLOCK]`` in float64: column ``j`` holds the half-sample filter shifted down by ``j``.

    One product with it filters a block of outputs: the same sums as a convolution of one channel, which the CPU
    libraries run at a small part of their matrix speed.
    """
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

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", _filter_matrix().float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        dtype = torch.promote_types(self.filters.dtype, torch.float32)
        if not self.filters.is_meta:
            # From float64 again: a cast to half precision and back would leave rounding noise 50 dB below the signal.
            self.filters = _filter_matrix().to(self.filters.device, dtype)
        return self

    def half_sample(self, x: Tensor) -> Tensor:
        """``[B, n]`` to ``[B, n - TAPS + 1]``: the signal half a sample after position ``ZEROS - 1`` of each window."""
        count = x.shape[1] - TAPS + 1
        blocks = -(-count // _BLOCK)
        padded = nn.functional.pad(x, (0, blocks * _BLOCK - count))
        windows = padded.unfold(1, TAPS + _BLOCK - 1, _BLOCK)
        # Autocast would run the filter in bf16, and its rounding would be noise 50 dB below the signal.
        with torch.autocast(x.device.type, enabled=False):
            return (windows @ self.filters.to(x.dtype)).reshape(x.shape[0], -1)[:, :count]


class SincUpsample(_HalfSampleFilter):
    """Double the rate.

    Shape:
        ``[B, n]`` and a buffer (see `initial_buffer`) to ``[B, 2 m]`` and the new buffer; over a whole signal, the last
        call being ``final``, exactly twice as many samples come out as went in.
    """

    def initial_buffer(self, like: Tensor) -> Tensor:
        """What precedes a signal: silence."""
        return like.new_zeros(like.shape[0], ZEROS - 1)

    def forward(self, x: Tensor, buffer: Tensor, *, final: bool) -> tuple[Tensor, Tensor]:
        """Return all samples whose look-ahead has arrived; ``final`` puts silence after the signal."""
        x = torch.cat([buffer, x, x.new_zeros(x.shape[0], LOOKAHEAD if final else 0)], dim=1)
        count = x.shape[1] - TAPS + 1
        if count <= 0:
            return x[:, :0], x
        even = x[:, ZEROS - 1 : ZEROS - 1 + count]
        return torch.stack([even, self.half_sample(x)], dim=2).flatten(1), x[:, count:].clone()

    def count(self, args: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made (`TAPS` for every other output); no trained weights."""
        return TAPS * output[0].shape[1] // 2, 0


class SincDownsample(_HalfSampleFilter):
    """Halve the rate: the inverse of `SincUpsample`.

    Shape:
        ``[B, n]`` and a buffer to ``[B, m]`` and the new buffer; over a whole signal ``ceil(n / 2)`` samples.
    """

    def initial_buffer(self, like: Tensor) -> Tensor:
        """What precedes a signal: silence."""
        return like.new_zeros(like.shape[0], 2 * ZEROS)

    def forward(self, x: Tensor, buffer: Tensor, *, final: bool) -> tuple[Tensor, Tensor]:
        """Return all samples whose look-ahead has arrived; ``final`` puts silence after the signal."""
        x = torch.cat([buffer, x], dim=1)
        if final:
            x = nn.functional.pad(x, (0, x.shape[1] % 2 + 2 * (ZEROS - 1)))
        pairs = x.shape[1] // 2
        count = pairs - TAPS + 1
        if count <= 0:
            return x[:, :0], x
        even, odd = x[:, : 2 * pairs].unflatten(1, (pairs, 2)).unbind(2)
        return 0.5 * (even[:, ZEROS : ZEROS + count] + self.half_sample(odd)), x[:, 2 * count :].clone()

    def count(self, args: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made (`TAPS` per output); no trained weights."""
        return TAPS * output[0].shape[1], 0
