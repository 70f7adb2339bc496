"""Bytes that the kernels of every block move, counted in Triton's interpreter with the tiles of an H100.

    python -m bench.traffic

prints, for 64 clips of 4 s in half precision, what all programs ask of the L2 cache and what has to come from memory or
go there, per block and UF and for a router's mixture, and the least time that these and the products allow: a *floor*,
no measurement. Every load and store of every program of some of the rows is seen, in sectors of 32 bytes, and scaled to
all rows. Sums of bytes of the launches of a call add up.

A fused decoder block reads its rows by plain loads before its loop, and its two taps share all rows but one: the second
time they are in its L1 cache (65 KB of x and skip at most, where shared memory leaves 92 KB and more), so that a
program's sectors count once. ``asked`` has them as often as they are asked for. Other kernels copy straight into shared
memory, which passes by that cache, or, as wide encoder blocks do, leave it no room.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from slimse.kernels import launching, overlap_add, slim_linear_glu, tiles, window_gemm
from slimse.kernels.decoder_block import decoder_block_forward
from slimse.kernels.encoder_block import encoder_block_forward
from slimse.kernels.launching import FrameWidths, frame_orders
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from bench.points import MIXTURE
from bench.roofline import CONFIG, H200, Ceilings, decoder_block, encoder_block, positions

H100 = Ceilings(3.0e12, H200.flops)
"""The same chip as an H200, less of a memory."""
CHIP = tiles.Chip(90, 227 * 1024)
L2_BANDWIDTH = 5.5e12
"""Bytes a second from the L2 cache of an H100 to all its multiprocessors: assumed, not measured."""
CLIPS, SECONDS, SECTOR = 64, 4.0, 32


@dataclass
class Count:
    """Bytes of one call."""

    asked: float = 0.0
    l2: float = 0.0
    memory: float = 0.0
    weights: set[int] = field(default_factory=set)

    def floor(self, work: Any) -> float:
        """Least seconds for these bytes and the products of ``work``."""
        return max(self.l2 / L2_BANDWIDTH, self.memory / H100.bandwidth, 2 * work.macs / H100.flops["bf16"])


@contextmanager
def counting(scale: float, weights: list[Tensor]) -> Iterator[Count]:
    """Within, launches are counted as parts of ``scale`` times as many rows; weights come from memory once."""
    count, seen = Count(), defaultdict(list)
    load, store, launch = (
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
        launching.launch,
    )
    ranges = [(w.data_ptr() // SECTOR, (w.data_ptr() + w.nbytes - 1) // SECTOR) for w in weights]

    def note(builder: Any, ptrs: Any, mask: Any) -> None:
        sectors = np.unique(ptrs.data[mask.data] // SECTOR)
        seen[tuple(builder.grid_idx)].append(sectors)

    def noted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        note(self, ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def noted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(self, ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    def counted(kernel: Any, *args: Any, **kwargs: Any) -> None:
        seen.clear()
        launch(kernel, *args, **kwargs)
        asked = sum(len(sectors) for program in seen.values() for sectors in program)
        each = [np.unique(np.concatenate(program)) for program in seen.values()]
        every = np.unique(np.concatenate(each))
        fixed = sum(int(((every >= first) & (every <= last)).sum()) for first, last in ranges)
        count.asked += SECTOR * scale * asked
        count.l2 += SECTOR * scale * (sum(map(len, each)) if kernel.__name__ == "decoder_block_fused" else asked)
        count.memory += SECTOR * (scale * (len(every) - fixed) + fixed)

    def as_for_all_rows(rows: int, *rest: Any, **kwargs: Any) -> tiles.Tile:
        return tiles.product_tile(int(rows * scale), *rest, **kwargs)

    with ExitStack() as stack:
        for owner, name, new in (
            (InterpreterBuilder, "create_masked_load", noted_load),
            (InterpreterBuilder, "create_masked_store", noted_store),
            (launching, "launch", counted),
            (tiles, "reported_chip", lambda *_: CHIP),
            *((module, "product_tile", as_for_all_rows) for module in (window_gemm, overlap_add, slim_linear_glu)),
        ):
            stack.enter_context(mock.patch.object(owner, name, new))
        yield count


def block(name: str, level: int, uf: float | None, rows: int) -> tuple[Count, Any]:
    """Count of a block at a UF, or for the mixture, from about ``rows`` of its rows; and the work of all of them."""
    c_in, c = CONFIG.channels(level - 1), CONFIG.channels(level)
    rate, stride, taps = CONFIG.stride ** (CONFIG.depth - level), CONFIG.stride, CONFIG.kernel_size
    frames = max(rows // rate, 12)
    # Of a decoder, so many output blocks: a tile that is almost empty would count as a whole one.
    time = frames * rate - (name == "decoder" and uf is not None)
    counts = [CONFIG.ufs.channels(one, c) for one in CONFIG.ufs]
    width: Any = None if uf is None else CONFIG.ufs.channels(uf, c)
    mean = sum(share * CONFIG.ufs.channels(one, c) for one, share in MIXTURE.items()) if uf is None else width
    if uf is None:
        generator = torch.Generator().manual_seed(0)
        shares = torch.tensor([MIXTURE[one] for one in CONFIG.ufs])
        choice = torch.multinomial(shares, frames, replacement=True, generator=generator).int().view(1, -1)
        lead = rate - 1
        width = FrameWidths(
            choice, torch.tensor(counts, dtype=torch.int32), rate, lead, frame_orders(choice, len(counts))
        )
    work: Callable[..., Any]
    if name == "encoder":
        work, x = encoder_block, torch.zeros(1, (time - 1) * stride + taps, c_in).half()
        weights = [torch.zeros(*size).half() for size in ((c, taps * c_in), (c,), (c, 2 * c), (2 * c,))]
        call: Callable[[], Tensor] = lambda: encoder_block_forward(x, *weights, width, stride)  # noqa: E731
    else:
        work, x, skip = decoder_block, torch.zeros(1, time, c).half(), torch.zeros(1, time, c).half()
        weights = [torch.zeros(*size).half() for size in ((c, 2, c), (c, 2), (c, taps * c_in), (c_in,))]
        more = {"skip": skip, "conv_bias": weights[3], "relu": level > 1}
        call = lambda: decoder_block_forward(x, *weights[:3], width, stride, c_in, **more)  # noqa: E731
    with counting(CLIPS * positions(level, SECONDS) / time, weights) as count:
        call()
    return count, work(level, CLIPS, SECONDS, mean)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024, help="of a block that are run")
    parser.add_argument("--match", default="", help="only blocks whose name contains this")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a Markdown table")
    args = parser.parse_args()
    columns = ("block", "UF", "asked GB", "L2 GB", "memory GB", "roofline ms", "floor ms", "floor / roofline")
    if not args.json:
        print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    floors: dict[Any, float] = defaultdict(float)
    least: dict[Any, float] = defaultdict(float)
    for name in ("encoder", "decoder"):
        for level in range(1, CONFIG.depth + 1):
            if args.match not in f"{name} {level}":
                continue
            for uf in (*CONFIG.ufs, None):
                # A mixture has tiles that two widths share; of all rows they are few, so that here more have to be run.
                count, work = block(name, level, uf, args.rows if uf is not None or level < 3 else 6 * args.rows)
                floor, roofline = count.floor(work), work.seconds("bf16", H100)
                floors[uf] += floor
                least[uf] += roofline
                cells = [count.asked / 1e9, count.l2 / 1e9, count.memory / 1e9, 1e3 * roofline, 1e3 * floor]
                show(f"{name} {level}", uf, cells, args.json)
    for uf in floors:
        show("all", uf, [0.0, 0.0, 0.0, 1e3 * least[uf], 1e3 * floors[uf]], args.json)
    share = sum(part * floors[uf] for uf, part in MIXTURE.items())
    print(
        json.dumps({"mixture over its share": floors[None] / share})
        if args.json
        else f"\nmixture over its share: {floors[None] / share:.3f}"
    )


def show(name: str, uf: float | None, cells: list[float], as_json: bool) -> None:
    """Print a row."""
    numbers = [*cells, cells[4] / cells[3]]
    label = "mixture" if uf is None else f"{uf:g}"
    if as_json:
        names = ("asked", "l2", "memory", "roofline", "floor", "ratio")
        print(json.dumps({"block": name, "uf": label, **dict(zip(names, numbers, strict=True))}), flush=True)
    else:
        print(f"| {name} | {label} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |", flush=True)


if __name__ == "__main__":
    main()
