"""Sinc resampling by two: every other output (going up), or all of them (going down), is a product with the filter.

Dimensions:
    TAPS: of the filter that gives a signal half a sample later.
    rows: runs of ``BLOCK`` outputs of the filter; row ``r`` reads ``BLOCK + TAPS - 1`` samples from ``r * BLOCK`` on.
    history: samples of a stream that came before; of none, silence.

History and signal lie apart in memory, and silence nowhere: nothing is put together before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks, launching
from .prefix_gemm import product


@triton.jit
def _load_samples(history_ptr, x_ptr, pos, n_history, n_before, n_samples):
    """Samples at ``pos`` of the history, whose first is that of ``n_before`` before the signal, and of the signal."""
    own = pos - n_before
    samples = tl.load(x_ptr + own, mask=(own >= 0) & (own < n_samples), other=0.0)
    if history_ptr is not None:
        samples += tl.load(history_ptr + pos, mask=(pos >= 0) & (pos < n_history), other=0.0)
    return samples


@triton.jit(do_not_specialize=["n_history", "n_before", "n_samples", "n_out", "n_rows"])
def sinc_resample_rows(
    history_ptr,  # (B, n_history) or None
    x_ptr,  # (B, n_samples)
    filters_ptr,  # (TAPS + BLOCK - 1, BLOCK): column j is the filter from row j on
    out_ptr,  # (B, 2 * n_out) going up, (B, n_out) going down
    n_history,
    n_before,
    n_samples,
    n_out,  # of the filter
    n_rows,  # of an item
    TAPS: tl.constexpr,
    UP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of rows of an item."""
    tiles = tl.cdiv(n_rows, BLOCK_R)
    item = (tl.program_id(0) // tiles).to(tl.int64)
    x_ptr += item * n_samples
    if history_ptr is not None:
        history_ptr += item * n_history
    rows = (tl.program_id(0) % tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = tl.arange(0, BLOCK)
    starts = rows * BLOCK
    # Going down, the filter runs over the odd samples, and the even ones are added.
    step: tl.constexpr = 1 if UP else 2
    middle: tl.constexpr = TAPS // 2 - 1 if UP else TAPS // 2
    acc = tl.zeros([BLOCK_R, BLOCK], dtype=tl.float32)
    for depth in range(0, TAPS + BLOCK - 1, BLOCK):
        pos = (starts[:, None] + (depth + cols)[None, :]) * step + (step - 1)
        window = _load_samples(history_ptr, x_ptr, pos, n_history, n_before, n_samples)
        offs = depth + cols
        filters = tl.load(
            filters_ptr + offs[:, None] * BLOCK + cols[None, :], mask=(offs < TAPS + BLOCK - 1)[:, None], other=0.0
        )
        acc = product(window, filters, acc, PRECISION=PRECISION)
    outs = starts[:, None] + cols[None, :]
    even = _load_samples(history_ptr, x_ptr, (outs + middle) * step, n_history, n_before, n_samples)
    if UP:
        both = tl.reshape(tl.join(even, acc), [BLOCK_R, 2 * BLOCK])
        places = (2 * starts)[:, None] + tl.arange(0, 2 * BLOCK)[None, :]
        tl.store(out_ptr + item * 2 * n_out + places, both, mask=places < 2 * n_out)
    else:
        tl.store(out_ptr + item * n_out + outs, 0.5 * (even + acc), mask=outs < n_out)


def sinc_resample_forward(
    x: Tensor, history: Tensor, filters: Tensor, up: bool, final: bool, *, precision: str = "tf32x3"
) -> tuple[Tensor, Tensor]:
    """Resample by two; see `slimse.ops.sinc_resample` for what it computes.

    Args:
        x: ``[B, n]``.
        history: ``[B, m]``; of none, silence.
        filters: ``[TAPS + 63, 64]``.
        up: or down.
        final: whether silence follows.
        precision: of float32 products.

    Returns:
        The samples that are ready, and the history of the next call; none after the ``final`` one.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    block = filters.shape[1] if filters.ndim == 2 else 0
    taps = len(filters) - block + 1
    if x.ndim != 2 or history.ndim != 2 or len(history) != len(x) or taps < 2 or block < 16:
        found = f"x {tuple(x.shape)}, history {tuple(history.shape)}, filters {tuple(filters.shape)}"
        raise ValueError(f"{found}: expected [batch, samples], [batch, earlier], [taps + block - 1, block]")
    x, history = x.contiguous(), history.contiguous()
    checks.check_shapes(filters=(filters, tuple(filters.shape)), x=(x, tuple(x.shape)))
    checks.check_precision(precision)
    batch, samples = x.shape
    before = history.shape[1] or (taps // 2 - 1 if up else taps)
    known = before + samples
    known += (taps // 2 if up else known % 2 + taps - 2) if final else 0
    count = max((known if up else known // 2) - taps + 1, 0)
    out = x.new_empty(batch, 2 * count if up else count)
    if out.numel():
        rows = triton.cdiv(count, block)
        tile = 32 if rows > 16 else 16
        launching.launch(
            sinc_resample_rows,
            (batch * triton.cdiv(rows, tile),),
            history if history.shape[1] else None,
            x,
            filters,
            out,
            history.shape[1],
            before,
            samples,
            count,
            rows,
            TAPS=taps,
            UP=up,
            BLOCK=block,
            BLOCK_R=tile,
            PRECISION=precision,
            num_warps=tile // 4,
            num_stages=2,
        )
    if final:
        return out, x[:, :0]
    earlier = history if history.shape[1] else x.new_zeros(batch, before)
    return out, torch.cat([earlier, x], 1)[:, count if up else 2 * count :].clone()
