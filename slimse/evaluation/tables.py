"""Scores as tables of a terminal, in 80 columns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from rich import box
from rich.table import Table

from .intervals import Interval
from .metrics import METRICS
from .results import Report, Width, label


def _plain(title: str, metrics: tuple[str, ...]) -> Table:
    """Narrow enough for 80 columns with all metrics."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    for name in ("width", "UF", "kMACs"):
        table.add_column(name, justify="left" if name == "width" else "right")
    for name in metrics:
        table.add_column(METRICS[name].heading or METRICS[name].title, justify="right")
    return table


def score_table(report: Report, count: int) -> Table:
    """Means of every width over ``count`` files, half widths of their intervals below them."""
    table = _plain(f"Means over {count} file{'s' if count > 1 else ''} (more is better)", report.metrics)
    for row in report.means():
        cells = []
        for name in report.metrics:
            digits, known = METRICS[name].digits, not math.isnan(row.values[name])
            value = f"{row.values[name]:.{digits}f}" if known else "-"
            half = f"±{row.intervals[name].half_width:.{digits}f}".replace("±0.", "±.") if known and count > 1 else ""
            cells.append(f"{value}{'*' * (name in row.excluded)}\n{half}")
        macs = "" if row.macs_per_sample is None else f"{row.macs_per_sample / 1000:,.2f}"
        table.add_row(label(row.uf), "" if row.average_uf is None else f"{row.average_uf:.3g}", macs, *cells)
    return table


def difference_table(title: str, report: Report, rows: Mapping[Width, Mapping[str, Interval]]) -> Table:
    """Differences of widths, half widths of their intervals below them."""
    table = _plain(title, report.metrics)
    means = {row.uf: row for row in report.means()}
    for uf, differences in rows.items():
        cells = []
        for name in report.metrics:
            found, digits = differences.get(name), METRICS[name].digits + 1
            known = found is not None and not math.isnan(found.mean)
            texts = (f"{found.mean:+.{digits}f}", f"±{found.half_width:.{digits}f}") if found and known else ("-", "")
            cells.append("\n".join(re.sub(r"(?<=[-+±])0\.", ".", text) for text in texts))
        average, macs = means[uf].average_uf, means[uf].macs_per_sample
        assert average is not None and macs is not None
        table.add_row(label(uf), f"{average:.3g}", f"{macs / 1000:,.2f}", *cells)
    return table
