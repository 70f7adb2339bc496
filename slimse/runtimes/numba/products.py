"""The matrix product, compiled once per kind of weights; the rest of the network calls it by its address."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types

from .jit import compiled, jit, sources
from .vector import LANES, NONE, WIDE, make_tile, weights_at

tile_8x1, tile_8x2, tile_4x1, tile_4x4 = make_tile(8, 1), make_tile(8, 2), make_tile(4, 1), make_tile(4, 4)
tile_1x1, tile_4x2, tile_1x2, tile_1x4 = make_tile(1, 1), make_tile(4, 2), make_tile(1, 2), make_tile(1, 4)
DEPTH = 128
"""Rows of a weight that stay in the first-level cache while many positions pass."""
KINDS: dict[Any, Any] = {"float32": types.float32, "uint16": types.uint16, "int8": types.int8}
"""Type of packed weights by the name of their dtype; ``uint16`` holds float16."""


@jit
def rows_of(rows, wide, job):
    """Up to four vectors of columns for ``rows`` rows, in the largest tiles that fit."""
    column = 0
    while column < wide:
        row = 0
        if wide == 4 and (WIDE == 4 or rows < 4):
            while WIDE == 4 and row + 4 <= rows:
                tile_4x4(row, column, job)
                row += 4
            while row < rows:
                tile_1x4(row, column, job)
                row += 1
            column += 4
        elif WIDE == 4 and wide - column >= 2:
            while row + 8 <= rows:
                tile_8x2(row, column, job)
                row += 8
            while row + 4 <= rows:
                tile_4x2(row, column, job)
                row += 4
            while row < rows:
                tile_1x2(row, column, job)
                row += 1
            column += 2
        else:
            while WIDE == 4 and row + 8 <= rows:
                tile_8x1(row, column, job)
                row += 8
            while row + 4 <= rows:
                tile_4x1(row, column, job)
                row += 4
            while row < rows:
                tile_1x1(row, column, job)
                row += 1
            column += 1


def _product_of(kind, digest):
    """See `product_address`."""

    def product(x, x_step, rows, inputs, weights, step, following, group, scale, bias, vectors, out, out_step, limits):
        _ = digest
        w = weights_at(weights, kind)
        floor, fresh = np.float32(0) if limits & 1 else NONE, limits & 2
        depth = DEPTH if rows >= 16 else inputs
        for first in range(0, vectors, 4):
            wide = min(4, vectors - first)
            to, here = first * LANES, first // 4 * group
            for start in range(0, inputs, depth):
                count = min(depth, inputs - start)
                least = floor if start + count == inputs else NONE
                init, init_at, init_step = out, to, out_step
                if start == 0 and fresh:
                    init, init_at, init_step = bias, to, 0
                job = (
                    *(x, start, x_step, w, here + start * step, step, following, scale, to),
                    *(out, to, out_step, init, init_at, init_step, count, least),
                )
                rows_of(rows, wide, job)

    return product


@cache
def product_address(kind: str) -> int:
    """Address of ``out = max(floor, x[:, :inputs] @ w + bias)`` for one of `KINDS` of weights.

    Its arguments are those of `slimse.runtimes.numba.vector.call_product`, with pointers for arrays. ``limits`` 1 is a
    floor of 0, and without 2 the sums are added to ``out`` instead of to ``bias``.
    """
    floats, number = types.CPointer(types.float32), types.int64
    return compiled(
        _product_of(KINDS[kind], sources()),
        types.void,
        *(floats, number, number, number),
        *(number, number, number, number, floats, floats, number),
        *(floats, number, number),
    )[1]
