"""Which channels of a network belong together: a union-find over axes of channels, with the blocks they are cut in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..nn.axis import Axis, Segment

Labels = NDArray[np.int64]
"""Numbers of channels, -1 for what no UF cuts."""

_PARTS = (1, 2, 3, 4)
"""Equal parts that the outputs of a layer may be split into again, as gates are."""


class SplitNeededError(Exception):
    """The outputs of some layers are split in parts that belong together: the trace has to start again."""


@dataclass
class Group:
    """Channels that a UF cuts together."""

    blocks: int
    """Equal blocks of channels, of which a prefix is active. One: they are never cut."""
    layers: list[str] = field(default_factory=list)
    """Names of the layers that put the channels out."""
    reason: str = ""
    """Why they stay full, or empty."""
    joins: str = ""
    """Which sum makes them the interface between blocks, or empty."""
    mixes: str = ""
    """What, besides layers, works on several channels at once; then items of a batch cannot differ in width."""


class Channels:
    """All axes of channels of a network, and the groups that they form.

    Args:
        parts: into how many equal parts the outputs of a layer are split, for those where it is not one.
    """

    def __init__(self, parts: dict[str, int]) -> None:
        self.parts = parts
        self.names: list[str] = []
        self.sizes: list[int] = []
        self.starts: list[int] = []
        self._parents: list[int] = []
        self._groups: list[Group] = []
        self._axes: dict[str, int] = {}
        self._next = 0

    def axis(self, name: str, size: int, *, produced: bool = True) -> Labels:
        """Labels of the ``size`` channels that ``name`` puts out; the same ones at every call."""
        parts = self.parts.get(name, 1)
        if name not in self._axes:
            self._axes[name] = len(self.names)
            self.names.append(name)
            self.sizes.append(size // parts)
            self.starts.append(self._next)
            self._parents.append(len(self._parents))
            self._groups.append(Group(size // parts, [name] if produced else []))
            self._next += size // parts
        start = self.starts[self._axes[name]]
        return np.tile(np.arange(start, start + size // parts), parts)

    def group(self, label: int) -> Group:
        """The group of a channel."""
        return self._groups[self._root(self._axis_of(np.array([label]))[0])]

    def all_groups(self) -> list[Group]:
        """Every group once, in the order in which the network makes them."""
        return [self._groups[index] for index in range(len(self.names)) if self._root(index) == index]

    def _axis_of(self, labels: Labels) -> Labels:
        return np.searchsorted(np.asarray(self.starts), labels, side="right") - 1

    def _root(self, axis: int) -> int:
        while self._parents[axis] != axis:
            axis = self._parents[axis]
        return axis

    def groups_of(self, labels: Labels) -> list[Group]:
        """The groups that have any of these channels."""
        found = labels[labels >= 0]
        axes: Labels = np.unique(self._axis_of(found)) if found.size else found
        return [self._groups[root] for root in sorted({self._root(int(axis)) for axis in axes})]

    def keep_full(self, labels: Labels, reason: str) -> None:
        """Never cut the groups of these channels; the first reason stands."""
        for group in self.groups_of(labels):
            group.blocks = 1
            group.reason = group.reason or reason

    def join(self, first: Labels, second: Labels, where: str, *, summed: bool = False) -> None:
        """Cut the channels ``first`` and ``second``, of one shape, together, pair by pair.

        Args:
            first: labels; pairs of which one is -1 are left out.
            second: labels.
            where: for the reason, if that cannot be.
            summed: whether they are added up, which makes of two groups the interface between blocks.

        Raises:
            SplitNeededError: if it can be once the outputs of a layer are split into parts.
        """
        both = (first >= 0) & (second >= 0)
        pairs = np.unique(np.stack([first[both], second[both]]), axis=1)
        axes = np.stack([self._axis_of(side) for side in pairs]) if pairs.size else pairs
        for a, b in {(int(a), int(b)) for a, b in axes.T}:
            chosen = (axes[0] == a) & (axes[1] == b)
            i, j = pairs[0][chosen] - self.starts[a], pairs[1][chosen] - self.starts[b]
            self._join(a, b, i, j, where, summed)

    def _join(self, a: int, b: int, i: Labels, j: Labels, where: str, summed: bool) -> None:
        ours, theirs = self._root(a), self._root(b)
        group, other = self._groups[ours], self._groups[theirs]
        most = gcd(group.blocks, other.blocks)
        fits = (m for m in range(most, 0, -1) if most % m == 0)
        blocks = next(m for m in fits if m == 1 or np.array_equal(i * m // self.sizes[a], j * m // self.sizes[b]))
        if blocks == 1 and most > 1:
            self._try_parts(a, b, i, j)
            group.reason = group.reason or other.reason or f"{where} combines channels that lie at different places"
        if ours != theirs:
            self._parents[theirs] = ours
            if summed and group.layers and other.layers:
                group.joins = group.joins or where
            group.layers += [name for name in other.layers if name not in group.layers]
            for name in ("reason", "joins", "mixes"):
                setattr(group, name, getattr(group, name) or getattr(other, name))
        group.blocks = blocks

    def _try_parts(self, a: int, b: int, i: Labels, j: Labels) -> None:
        """Look for parts in which the channels are in the same places, and start again with them."""
        for s, t in ((s, t) for s in _PARTS for t in _PARTS if s + t > 2 and (a != b or s == t)):
            m, n = self.sizes[a] // s, self.sizes[b] // t
            if m > 1 and m == n and self.sizes[a] == m * s and self.sizes[b] == n * t and np.array_equal(i % m, j % n):
                self.split(a, s)
                if a != b:
                    self.split(b, t)
                raise SplitNeededError

    def split(self, axis: int, parts: int) -> None:
        """Split the outputs of a layer into more parts in the next trace."""
        if parts > 1:
            self.parts[self.names[axis]] = self.parts.get(self.names[axis], 1) * parts

    def read(self, labels: Labels, where: str) -> None:
        """Check that a layer reads whole runs of channels in order; what it does not, stays full."""
        while True:
            wrong = self._unfit(labels)
            if wrong is None:
                return
            axis, run = wrong
            size = self.sizes[axis]
            if 1 < len(run) < size and size % len(run) == 0 and size // len(run) in _PARTS:
                self.split(axis, size // len(run))
                raise SplitNeededError
            self.keep_full(run, f"{where} reads a part of them, or in another order")

    def layout(self, labels: Labels, cut: Sequence[Group] | None = None) -> Axis:
        """The axis of a layer that reads or puts out these channels.

        Args:
            labels: of its channels.
            cut: the groups that a UF cuts; by default all that it can.
        """
        segments: list[Segment] = []
        for group, blocks in self._runs(labels):
            fixed = group is None or group.blocks == 1 or (cut is not None and not any(group is one for one in cut))
            segments += self._segments(blocks, 1 if fixed or group is None else group.blocks)
        merged: list[Segment] = []
        for is_fixed, found in groupby(segments, lambda segment: segment.blocks == 1):
            run = [*found]
            merged += [Segment(sum(segment.size for segment in run), 1)] if is_fixed else run
        return Axis(merged)

    def _blocks(self, labels: Labels) -> tuple[Labels, Labels]:
        """Root and number of the block of every channel, -1 for none."""
        roots, blocks = np.full_like(labels, -1), np.full_like(labels, -1)
        found = labels >= 0
        axes = self._axis_of(labels[found])
        roots[found] = [self._root(int(axis)) for axis in axes]
        sizes, starts = np.asarray(self.sizes, dtype=np.int64), np.asarray(self.starts, dtype=np.int64)
        counts = np.array([self._groups[root].blocks for root in roots[found]], dtype=np.int64)
        blocks[found] = (labels[found] - starts[axes]) * counts // sizes[axes]
        return roots, blocks

    def _runs(self, labels: Labels) -> list[tuple[Group | None, Labels]]:
        """Runs of channels of one group, with the numbers of their blocks."""
        roots, blocks = self._blocks(labels)
        bounds = [0, *(np.flatnonzero(np.diff(roots)) + 1), len(roots)]
        return [
            (None if roots[start] < 0 else self._groups[int(roots[start])], blocks[start:end])
            for start, end in pairwise(bounds)
            if end > start
        ]

    @staticmethod
    def _segments(blocks: Labels, count: int) -> list[Segment]:
        """A run as segments, each of which goes through all blocks in order."""
        if count == 1:
            return [Segment(len(blocks), 1)]
        repeat = int(np.argmax(blocks != blocks[0])) or len(blocks)
        size = count * repeat
        whole = np.tile(np.arange(count).repeat(repeat), max(len(blocks) // size, 1))
        if len(whole) != len(blocks) or not np.array_equal(blocks, whole):
            return []
        return [Segment(size, count)] * (len(blocks) // size)

    def _unfit(self, labels: Labels) -> tuple[int, Labels] | None:
        """The first run that is not made of whole segments: its axis, and its labels."""
        at = 0
        for group, blocks in self._runs(labels):
            run = labels[at : at + len(blocks)]
            at += len(blocks)
            if group is not None and group.blocks > 1 and not self._segments(blocks, group.blocks):
                return int(self._axis_of(run[:1])[0]), run
        return None


def describe(value: Any) -> str:
    """One line of an error, for a reason."""
    return " ".join(str(value).split())[:160]
