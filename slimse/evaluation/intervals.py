"""Confidence intervals of means over files, by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over files, and the bounds between which the means of 95 % of the resamples lie."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance of the bounds."""
        return (self.high - self.low) / 2


@cache
def _draws(count: int) -> NDArray[np.int64]:
    # One seed for all: rows of a table that are compared see the same files drawn.
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def interval(values: Sequence[float]) -> Interval:
    """Mean of the values that are no NaN, and its percentile bootstrap interval over files (files redrawn as a whole).

    For a paired comparison, give the differences file by file. All three are NaN where there are no values.
    """
    known = np.asarray([value for value in values if not np.isnan(value)], dtype=np.float64)
    if not known.size:
        return Interval(float("nan"), float("nan"), float("nan"))
    means = known[_draws(len(known))].mean(axis=1)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(known.mean()), float(low), float(high))
