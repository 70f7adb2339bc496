"""Bytes and multiply-accumulates of each op, counted from shapes, and the least time that a device's ceilings allow.

    python -m bench.roofline

prints, for 64 clips of 4 s and the paper preset, the attainable speed-up of every block on an H200: its least time at
UF 1 over its least time at the UF. It is arithmetic over named ceilings; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slimse.networks import SlimDemucsConfig

CONFIG = SlimDemucsConfig()
RATE = CONFIG.sample_rate * CONFIG.resample
"""Samples per second inside of the network."""
ELEMENT = {"fp32": 4, "tf32": 4, "tf32x3": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Ceilings:
    """What a device does at most in a second: bytes of its memory, and floating-point operations by number format."""

    bandwidth: float
    flops: Mapping[str, float]


H200 = Ceilings(4.3e12, {"fp32": 60e12, "tf32": 315e12, "bf16": 630e12})
"""Assumed: 90 % of the peak of its memory, 80 % of that of its matrix units. Reports use measured ceilings."""


@dataclass(frozen=True)
class Work:
    """What a call has to do at least: every input, active weight and output moves once."""

    macs: float
    elements: float
    parts: tuple[Work, ...] = ()
    """What it is made of, one after the other, if of more than one."""

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        parts = tuple(part for work in (self, other) for part in (work.parts or (work,)) if part.macs or part.elements)
        return Work(self.macs + other.macs, self.elements + other.elements, parts)

    def bytes(self, kind: str) -> float:
        """Bytes in a number format."""
        return self.elements * ELEMENT[kind]

    def seconds(self, kind: str, ceilings: Ceilings = H200) -> float:
        """Least time in a number format: what moves in one part cannot hide behind the products of another."""
        if self.parts:
            return sum(part.seconds(kind, ceilings) for part in self.parts)
        return max(self.bytes(kind) / ceilings.bandwidth, 2 * self.macs / ceilings.flops[kind])


def positions(level: int, seconds: float) -> int:
    """Positions of encoder ``level`` in a clip; level 0 is its input."""
    count = int(seconds * RATE)
    for _ in range(level):
        count = (count - CONFIG.kernel_size) // CONFIG.stride + 1
    return count


def encoder_block(level: int, batch: int, seconds: float, k: float) -> Work:
    """Of ``k`` active channels on average over the positions."""
    c_in, c, taps = CONFIG.channels(level - 1), CONFIG.channels(level), CONFIG.kernel_size
    rows, weights = batch * positions(level, seconds), k * (taps * c_in + 2 * c)
    return Work(rows * weights, batch * positions(level - 1, seconds) * c_in + rows * c + weights + k + 2 * c)


def decoder_block(level: int, batch: int, seconds: float, k: float) -> Work:
    """Of ``k`` active channels on average; input and skip are read."""
    c, c_out, taps, stride = CONFIG.channels(level), CONFIG.channels(level - 1), CONFIG.kernel_size, CONFIG.stride
    time = positions(level, seconds)
    weights, outputs = k * (2 * c + taps * c_out), batch * (stride * time + taps - stride) * c_out
    return Work(batch * time * weights, 2 * batch * time * c + outputs + weights + 2 * k + c_out)


def convolution(rows: int, inputs: float, outputs: float, weights: float) -> Work:
    """Of ``weights`` weights at ``rows`` positions, with so many elements in and out."""
    return Work(rows * weights, inputs + outputs + weights)


def recurrence(
    batch: int, time: int, inputs: int, k: tuple[float, float], gates: int, units: int, groups: int = 1
) -> Work:
    """Of ``groups`` layers with ``k`` active units (mean, mean square) a step; the weights are read once and held."""
    weights = groups * gates * (k[0] * inputs + k[1])
    return Work(batch * time * weights, batch * time * groups * (inputs + units) + weights)


def main() -> None:
    """Print the attainable speed-ups."""
    print("| block | " + " | ".join(f"{kind}, UF {uf}" for kind in H200.flops for uf in CONFIG.ufs[:-1]) + " |")
    print("| --- |" + " ---: |" * (len(H200.flops) * (len(CONFIG.ufs) - 1)))
    for name, block in (("encoder", encoder_block), ("decoder", decoder_block)):
        for level in range(1, CONFIG.depth + 1):
            cells = []
            for kind in H200.flops:
                full = block(level, 64, 4.0, CONFIG.channels(level)).seconds(kind)
                for uf in CONFIG.ufs[:-1]:
                    k = CONFIG.ufs.channels(uf, CONFIG.channels(level))
                    cells.append(f"{full / block(level, 64, 4.0, k).seconds(kind):.2f}x")
            print(f"| {name} {level} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
