"""Launch parameters: one table for every class of chip, op and number format, and what picks a row of it.

The numbers were looked for with ahead-of-time builds (``bench/resources.py``): no spill, and shared memory that the
chip has. ``bench/gpu.py --tune`` finds better ones for blocks where there is a GPU to time them.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

PRECISIONS = ("ieee", "tf32", "tf32x3")
"""How float32 products are computed; half-precision inputs always use tensor cores with float32 sums."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


Row = TypeVar("Row")


class Chip(NamedTuple):
    """What launch parameters depend on, as the device reports it."""

    capability: int = 80
    """90 for 9.0; 0 for what is not NVIDIA's."""
    shared: int = 163 * 1024
    """Bytes of shared memory that a program may take."""

    @property
    def kind(self) -> str:
        """Its class in the tables. Consumer chips of any generation have less shared memory than those of servers."""
        if self.capability == 0:
            return "amd"
        if self.shared < 160 * 1024:
            return "consumer"
        return "ampere" if self.capability < 90 else "hopper" if self.capability < 100 else "blackwell"


AMPERE = Chip()
"""An A100."""


def chip_of(device: torch.device) -> Chip:
    """The chip of a device; what is no GPU counts as AMD's, whose tiles are the smallest."""
    return reported_chip(device.type, device.index)


@functools.cache
def reported_chip(kind: str, index: int | None) -> Chip:
    """See `chip_of`; devices of one machine are alike enough to be asked for once."""
    if kind != "cuda" or torch.version.hip is not None:
        return Chip(0, 64 * 1024)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return Chip(10 * properties.major + properties.minor, properties.shared_memory_per_block_optin)


def number_format(dtype: torch.dtype, precision: str) -> str:
    """What products are computed in, as the tables call it."""
    return "half" if dtype != torch.float32 else "fp32" if precision == "ieee" else precision


@dataclass(frozen=True)
class Tile:
    """Tile of a matrix product: ``rows`` x ``cols`` outputs per program, ``depth`` of the reduction per step."""

    rows: int
    cols: int
    depth: int
    num_warps: int = 4
    num_stages: int = 3

    def grid(self, rows: int, cols: int) -> tuple[int, int]:
        """Programs for ``rows`` x ``cols`` outputs."""
        return triton.cdiv(rows, self.rows), triton.cdiv(cols, self.cols)

    def launch_options(self, rows: str, cols: str, depth: str) -> dict[str, int]:
        """Keyword arguments of `launching.launch`, the three sizes under the names that a kernel has for them."""
        sizes = {rows: self.rows, cols: self.cols, depth: self.depth}
        return {**sizes, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class BlockConfig:
    """Launch parameters of the forward pass of a block.

    Args:
        fused: one launch that keeps the hidden channels on chip, or two that write them out.
        block_t: rows of a tile.
        block_c: output columns of a tile.
        block_h: hidden channels per step of the loop over the width.
        block_k: input elements per step.
        num_warps: of a program.
        num_stages: of the software pipeline.
    """

    fused: bool
    block_t: int
    block_c: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int

    def launch_options(self) -> dict[str, int]:
        """Keyword arguments of `launching.launch` for the fused kernel: block sizes in upper case."""
        fields = asdict(self)
        del fields["fused"]
        return {key.upper() if key.startswith("block_") else key: value for key, value in fields.items()}


@dataclass(frozen=True)
class RecurrentConfig:
    """Launch parameters of a recurrent kernel.

    Args:
        resident: whether weights and state stay on chip, or units are spread over programs.
        block_u: units of a tile.
        block_j: units whose state is read per step of a product.
        num_warps: of a program.
    """

    resident: bool
    block_u: int
    block_j: int
    num_warps: int


class Product(NamedTuple):
    """Row of the table of matrix products: the largest tile, and how a smaller one differs."""

    rows: int
    cols: int
    depth: int
    num_stages: int
    wide: int
    """Outputs of a tile from which it has eight warps, not four."""
    deep: int = 0
    """Outputs of a tile from which a step takes twice the depth; 0 for never."""
    many: int = 0
    """Rows from which there are programs enough for tiles of all of ``cols``; for fewer they have at most 128."""


_FMA = Product(64, 64, 16, num_stages=2, wide=2048)
# From sm_90 on the compiler would rather spill a little than give four warps so many sums.
_FMA_WARPS = Product(64, 64, 16, num_stages=2, wide=0)
PRODUCTS = {
    ("ampere", "half"): Product(128, 128, 32, num_stages=2, wide=2048, deep=16384),
    ("ampere", "tf32"): Product(64, 64, 32, num_stages=2, wide=2048),
    ("ampere", "tf32x3"): Product(64, 32, 16, num_stages=2, wide=1024),
    ("ampere", "fp32"): _FMA,
    ("consumer", "half"): Product(128, 128, 32, num_stages=2, wide=2048, deep=16384),
    ("consumer", "tf32"): Product(64, 64, 32, num_stages=2, wide=2048),
    ("consumer", "tf32x3"): Product(64, 32, 16, num_stages=2, wide=1024),
    ("consumer", "fp32"): _FMA,
    ("hopper", "half"): Product(128, 256, 32, num_stages=3, wide=1024, deep=16384, many=8192),
    ("hopper", "tf32"): Product(128, 64, 32, num_stages=3, wide=1024),
    ("hopper", "tf32x3"): Product(128, 64, 32, num_stages=2, wide=1024),
    ("hopper", "fp32"): _FMA_WARPS,
    ("blackwell", "half"): Product(128, 128, 32, num_stages=3, wide=1024, deep=8192),
    ("blackwell", "tf32"): Product(64, 64, 32, num_stages=3, wide=1024),
    ("blackwell", "tf32x3"): Product(64, 32, 16, num_stages=2, wide=0),
    ("blackwell", "fp32"): _FMA_WARPS._replace(cols=32),
    ("amd", "half"): Product(128, 128, 32, num_stages=2, wide=2048, deep=16384),
    ("amd", "tf32"): Product(64, 64, 32, num_stages=2, wide=2048),
    ("amd", "fp32"): _FMA,
}
"""By class of chip and number format. AMD has no ``"tf32x3"``: its matrix instructions compute in float32."""


def product_tile(
    rows: int, cols: int, dtype: torch.dtype, precision: str = "ieee", chip: Chip = AMPERE, *, broad: bool = True
) -> Tile:
    """A tile for ``rows`` x ``cols`` outputs of a matrix product; not ``broad``, of at most 128 columns."""
    entry = _entry(PRODUCTS, chip, number_format(dtype, precision))
    most = entry.cols if broad and rows >= entry.many else min(entry.cols, 128)
    rows, cols = _fitting(rows, entry.rows), _fitting(cols, most)
    # Few rows leave registers for a deeper step.
    deep = entry.deep and (rows == 16 or rows * cols >= entry.deep)
    warps = 8 if rows * cols >= entry.wide else 4
    return Tile(rows, cols, 2 * entry.depth if deep else entry.depth, warps, entry.num_stages)


class Block(NamedTuple):
    """Row of the table of fused blocks, for outputs of some number of columns."""

    block_t: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int


def _fused(chips: str, number: str, rows: dict[int, Block]) -> dict[tuple[str, str], dict[int, Block]]:
    return {(chip, number): rows for chip in chips.split()}


_FMA_BLOCKS = {64: Block(64, 16, 16, 8, 2), 128: Block(32, 16, 16, 8, 2)}
BLOCKS = {
    "encoder_block": {
        **_fused("hopper", "half", {32: Block(128, 32, 64, 4, 3), 128: Block(128, 32, 128, 8, 2)}),
        # Tensor memory takes registers on its way out.
        **_fused(
            "blackwell",
            "half",
            {32: Block(128, 32, 64, 4, 3), 64: Block(128, 32, 128, 8, 2), 128: Block(128, 16, 128, 8, 2)},
        ),
        **_fused("ampere", "half", {32: Block(128, 32, 64, 4, 3), 128: Block(64, 32, 128, 8, 2)}),
        **_fused("consumer", "half", {32: Block(128, 32, 64, 4, 3), 128: Block(64, 16, 128, 8, 2)}),
        **_fused("amd", "half", {32: Block(128, 32, 64, 4, 3), 128: Block(64, 32, 64, 8, 3)}),
        **_fused("hopper", "tf32", {64: Block(128, 32, 32, 8, 3), 128: Block(128, 16, 32, 8, 3)}),
        **_fused("ampere consumer blackwell amd", "tf32", {32: Block(128, 32, 32, 4, 3), 128: Block(64, 16, 32, 8, 3)}),
        **_fused("hopper ampere consumer blackwell", "tf32x3", _FMA_BLOCKS),
        **_fused("hopper ampere consumer blackwell amd", "fp32", _FMA_BLOCKS),
    },
    "decoder_block": {
        **_fused("hopper blackwell", "half", {128: Block(128, 16, 64, 8, 3), 256: Block(128, 16, 128, 8, 3)}),
        **_fused("ampere", "half", {64: Block(128, 16, 64, 8, 3), 256: Block(64, 16, 128, 8, 3)}),
        **_fused("consumer", "half", {64: Block(128, 16, 64, 8, 3), 256: Block(64, 16, 128, 8, 2)}),
        **_fused("amd", "half", {64: Block(128, 16, 64, 8, 3), 256: Block(64, 16, 64, 8, 3)}),
        **_fused("hopper blackwell", "tf32", {128: Block(128, 16, 32, 8, 3), 256: Block(64, 16, 32, 8, 3)}),
        **_fused("ampere consumer amd", "tf32", {64: Block(128, 16, 32, 8, 3), 256: Block(64, 16, 32, 8, 3)}),
        **_fused("hopper ampere consumer blackwell", "tf32x3", {128: Block(64, 16, 16, 8, 2)}),
        # Without matrix instructions arithmetic is what costs: no hidden channel is worth computing once per tap.
        **_fused("hopper ampere consumer blackwell amd", "fp32", {16: Block(64, 16, 16, 8, 2)}),
    },
}
"""By op, class of chip, number format, and the most columns of an output; more than all take two launches."""


def block_config(
    op: str, sizes: tuple[int, int, int], dtype: torch.dtype, precision: str = "ieee", chip: Chip = AMPERE
) -> BlockConfig:
    """Launch parameters of a block with so many rows, columns of an output and elements of an input row."""
    rows, cols, inputs = sizes
    number = number_format(dtype, precision)
    table = _entry(BLOCKS[op], chip, number)
    most = max(table)
    block_c = _fitting(cols, most)
    entry = table[min(size for size in table if size >= block_c)]
    block_t, block_k = _fitting(rows, entry.block_t), _fitting(inputs, entry.block_k)
    small = number != "fp32" and block_t * block_c <= 4096
    # Few rows share one wide column tile: a third stage would not leave it its registers.
    stages = 2 if block_t < 64 else entry.num_stages
    return BlockConfig(cols <= most, block_t, block_c, entry.block_h, block_k, 4 if small else entry.num_warps, stages)


class Recurrence(NamedTuple):
    """Row of the table of recurrent kernels."""

    resident: int
    """Most units whose weights stay on chip, at one width."""
    block_j: int
    """Units whose state is read per step of a product, where they do not."""


RECURRENCES = {
    ("hopper", "half"): (Recurrence(128, 64), Recurrence(128, 64)),
    ("ampere", "half"): (Recurrence(128, 64), Recurrence(128, 64)),
    # Three gates of 128 units are 96 KiB; with what a step converts, that is more than such a chip has.
    # At sm_120 the backward pass spills with 64 units resident.
    ("consumer", "half"): (Recurrence(64, 64), Recurrence(32, 64)),
    # Tensor memory takes registers on its way in and out, and AMD has fewer for its wider warps; the backward pass has
    # more to hold, so gets smaller tiles.
    ("blackwell", "half"): (Recurrence(128, 64), Recurrence(64, 64)),
    ("amd", "half"): (Recurrence(128, 64), Recurrence(64, 64)),
    ("hopper", "tf32"): (Recurrence(32, 32), Recurrence(32, 32)),
    ("blackwell", "tf32"): (Recurrence(32, 32), Recurrence(32, 32)),
    **{(chip, "tf32"): (Recurrence(32, 16), Recurrence(32, 32)) for chip in ("ampere", "consumer", "amd")},
    **{
        (chip, number): (Recurrence(32, 32), Recurrence(32, 32))
        for chip in ("ampere", "consumer", "hopper", "blackwell", "amd")
        for number in ("fp32", "tf32x3")
    },
}
"""By class of chip and number format: of the forward pass and of the backward pass."""
SPREAD = 16
"""Units of a program that shares a step with others: the fewest that a matrix product takes, as they all read the same
states, and each its own weights."""


def recurrent_config(
    bound: int,
    rows: Tensor | None,
    dtype: torch.dtype,
    precision: str = "ieee",
    *,
    backward: bool = False,
    chip: Chip = AMPERE,
) -> RecurrentConfig:
    """Launch parameters of a recurrent kernel with ``bound`` units, whose width may differ between steps (``rows``)."""
    entry = _entry(RECURRENCES, chip, number_format(dtype, precision))[backward]
    tile = max(triton.next_power_of_2(bound), 16)
    if rows is None and tile <= entry.resident:
        return RecurrentConfig(True, tile, tile, {16: 2, 128: 8}.get(tile, 4))
    return RecurrentConfig(False, SPREAD, min(tile, entry.block_j), 4)


def _entry(table: dict[tuple[str, str], Row], chip: Chip, number: str) -> Row:
    """The row of a table for a chip and a number format."""
    return table[chip.kind, "fp32" if (chip.kind, number) == ("amd", "tf32x3") else number]


def _fitting(size: int, most: int) -> int:
    """The power of two from 16, the least that a matrix product takes, to ``most`` that holds ``size``."""
    return min(max(triton.next_power_of_2(size), 16), most)
