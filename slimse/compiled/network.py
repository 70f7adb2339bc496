"""A model's weights in compiled form, and streams that run on them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models import DemucsState, SlimDemucs
from ..nn.resample import ZEROS
from . import layout as f
from .layout import Floats, Ints, Layout
from .stream import feed


class CompiledStream:
    """One stream of a causal model on the CPU.

    Args:
        model: the model whose weights `layout` holds.
        layout: from `compiled_layout`.
    """

    def __init__(self, model: SlimDemucs, layout: Layout) -> None:
        self.model, self.layout = model, layout
        self._mem = np.zeros(layout.mem_size, np.float32)
        self._scratch = np.zeros(layout.scratch_size, np.float32)
        self._ints = np.zeros(layout.int_size, np.int64)
        stages = int(layout.shape[f.STAGES])
        self._ints[f.UP_COUNT : f.UP_COUNT + stages] = ZEROS - 1
        self._ints[f.DOWN_COUNT : f.DOWN_COUNT + stages] = 2 * ZEROS
        self._tables = (layout.weights, layout.const, self._mem, self._scratch, self._ints)
        self._tables += (layout.shape, layout.levels, layout.mats, layout.counts)

    def feed(self, x: Floats, choice: Ints) -> Floats:
        model, seen, pending = self.model, int(self._ints[f.SAMPLES]), int(self._ints[f.PENDING])
        before = model.frames_done(seen)
        after = model.frames_done(seen + pending + len(x))
        out = np.empty(model.emitted(after) - model.emitted(before), np.float32)
        feed(x, choice, out, -1, 0, *self._tables)
        return out

    def finish(self, x: Floats, choice: Ints) -> Floats:
        model, seen, pending = self.model, int(self._ints[f.SAMPLES]), int(self._ints[f.PENDING])
        total = seen + pending + len(x)
        out = np.empty(total - model.emitted(model.frames_done(seen)) if total else 0, np.float32)
        if total:
            frames = model.frames(total)
            left = frames - model.frames_done(total)
            feed(x, choice, out, left, model.receptive_samples(frames) - total, *self._tables)
        return out
