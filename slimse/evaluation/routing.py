"""What scores say about a router: whether it follows the noise, and whether it beats widths of the same cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evaluate import Dynamic, MeanScores, Report
from .metrics import METRICS


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank; NaN if either is constant."""

    def ranks(values: Sequence[float]) -> NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])

    if len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan")
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def use_by_input(report: Report) -> dict[float, tuple[list[float], list[float]]]:
    """Per budget, SI-SDR of the input and average UF of every file that has an SI-SDR."""
    level = {row.file: row.scores.values.get("si_sdr", math.nan) for row in report.files if row.uf is None}
    found: dict[float, tuple[list[float], list[float]]] = {}
    for row in report.files:
        if isinstance(row.uf, Dynamic) and np.isfinite(level[row.file]):
            levels, used = found.setdefault(row.uf.budget, ([], []))
            average, _ = report.cost(row.uf, report.shares([row]))
            assert average is not None
            levels.append(level[row.file])
            used.append(average)
    return found


def summarise(report: Report) -> list[dict[str, Any]]:
    """Per budget: average UF, rank correlation of a file's UF with its input SI-SDR, and where it beats the staircase.

    ``above_staircase`` names the metrics in which the budget is better than the widest static UF that costs no more (in
    MACs, the router's included); null where there is none. ``rank_correlation`` is null where it is undefined.
    """
    means, points = report.means(), use_by_input(report)
    static = [row for row in means if row.uf is not None and not isinstance(row.uf, Dynamic)]
    found = []
    for row in means:
        if not isinstance(row.uf, Dynamic):
            continue
        rho = rank_correlation(*points.get(row.uf.budget, ([], [])))
        stair = max((s for s in static if _macs(s) <= _macs(row)), key=_macs, default=None)
        above = None if stair is None else [m for m in report.metrics if row.values[m] > stair.values[m]]
        found.append(
            {
                "budget": row.uf.budget,
                "average_uf": row.average_uf,
                "rank_correlation": None if math.isnan(rho) else rho,
                "above_staircase": above,
            }
        )
    return found


def sentences(report: Report) -> list[str]:
    """`summarise` in words, one sentence per budget."""
    lines = []
    for row in summarise(report):
        rho, above = row["rank_correlation"], row["above_staircase"]
        line = f"budget {row['budget']:g}: average UF {row['average_uf']:.3f}"
        if rho is not None:
            line += f", rank correlation with input SI-SDR {rho:.2f}"
        if above is not None:
            titles = ", ".join(METRICS[name].title.split(",")[0] for name in above)
            line += f", above the static staircase in {len(above)} of {len(report.metrics)} metrics"
            line += f" ({titles})" if titles else ""
        lines.append(line)
    return lines


def _macs(row: MeanScores) -> float:
    assert row.macs_per_sample is not None
    return row.macs_per_sample
