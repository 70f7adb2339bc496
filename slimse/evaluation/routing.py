"""What scores say about a router: whether it beats fixed widths at equal cost, and what it spends where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import Interval, interval
from .metrics import METRICS
from .results import Dynamic, MeanScores, Report


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


def line_distances(report: Report) -> dict[float, dict[str, Interval]]:
    """Per budget and metric, how far its scores lie above the line between the fixed widths at equal MACs.

    The line joins the scores of the two fixed widths next to the budget in cost, file by file: what playing each of
    them in some share of the time would score, if changing cost nothing. All MACs count, the router's too. What costs
    less than the narrowest width, or more than the widest, is compared with that. Budgets without a fixed width
    beside them in the report are left out.
    """
    means = report.means()
    fixed = sorted((row for row in means if row.uf is not None and not isinstance(row.uf, Dynamic)), key=_macs)
    found: dict[float, dict[str, Interval]] = {}
    for row in means:
        if not isinstance(row.uf, Dynamic) or not fixed:
            continue
        position = float(np.interp(_macs(row), [_macs(width) for width in fixed], range(len(fixed))))
        below, above = fixed[math.floor(position)], fixed[math.ceil(position)]
        share = position - math.floor(position)
        found[row.uf.budget] = {
            name: interval(
                [
                    own - (1 - share) * low - share * high
                    for own, low, high in zip(
                        *(report.column(r.uf, name) for r in (row, below, above)),
                        strict=True,
                    )
                ]
            )
            for name in report.metrics
        }
    return found


def summarise(report: Report) -> list[dict[str, Any]]:
    """Per budget: cost, distance from the line between the fixed widths, rank correlation of use with input SI-SDR.

    ``above_line`` holds mean and bounds by metric (see `line_distances`), and is empty where no fixed width was scored.
    ``rank_correlation`` is null where it is undefined.
    """
    points, distances = use_by_input(report), line_distances(report)
    found = []
    for row in report.means():
        if not isinstance(row.uf, Dynamic):
            continue
        rho = rank_correlation(*points.get(row.uf.budget, ([], [])))
        above = distances.get(row.uf.budget, {})
        found.append(
            {
                "budget": row.uf.budget,
                "average_uf": row.average_uf,
                "macs_per_sample": row.macs_per_sample,
                "rank_correlation": None if math.isnan(rho) else rho,
                "above_line": {name: d._asdict() for name, d in above.items() if not math.isnan(d.mean)},
            }
        )
    return found


def sentences(report: Report) -> list[str]:
    """`summarise` in words, for every budget."""
    lines = []
    for row in summarise(report):
        line = f"Budget {row['budget']:g}: the router used UF {row['average_uf']:.3f} on average."
        parts = [_signed(name, Interval(**found)) for name, found in row["above_line"].items()]
        if parts:
            line += f" Against fixed widths of the same cost: {', '.join(parts)}."
        lines.append(line)
    return lines


def _signed(name: str, found: Interval) -> str:
    mean, low, high = (f"{value:+.{METRICS[name].digits + 1}f}" for value in found)
    return f"{METRICS[name].title.split(',')[0]} {mean} ({low} to {high})"


def _macs(row: MeanScores) -> float:
    assert row.macs_per_sample is not None
    return row.macs_per_sample
