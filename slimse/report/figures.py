"""The pictures of a report, drawn from scores and traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..demo import spectrogram
from ..evaluation import METRICS, Dynamic, MeanScores, Report
from ..evaluation.results import label
from ..evaluation.routing import rank_correlation, use_by_input
from .trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONTS = ("pesq", "si_sdr", "stoi", "p808")
_STATIC, _DYNAMIC = "#4477aa", "#cc3311"
_UFS = "viridis"
_WIDTH = 5.2
"""Inches: narrow enough that letters can be read where a phone makes it smaller."""


def _figure(height: float, title: str) -> Figure:
    # The object interface: pyplot would keep the figure, and pick a backend that may need a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=130, layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=11, fontweight="bold")
    return figure


def draw_front(report: Report, *, by_macs: bool) -> Figure:
    """Quality over average UF or MACs per sample: the line between the fixed widths, and the budgets."""
    names = [name for name in FRONTS if name in report.metrics] or list(report.metrics[:1])
    means = [row for row in report.means() if row.uf is not None]
    static = sorted((r for r in means if not isinstance(r.uf, Dynamic)), key=lambda row: _cost(row, by_macs))
    dynamic = sorted((r for r in means if isinstance(r.uf, Dynamic)), key=lambda row: _cost(row, by_macs))
    x_label = "MACs per sample, router included" if by_macs else "average UF"
    figure = _figure(2.9 * len(names) + 0.8, f"Quality over {x_label}")
    noisy = next(row for row in report.means() if row.uf is None)
    for axis, name in zip(figure.subplots(len(names), 1, squeeze=False).flat, names, strict=False):
        x, y = [_cost(row, by_macs) for row in static], [row.values[name] for row in static]
        # The line is what a router has to beat: two widths in turns would lie on it if changing cost nothing.
        axis.plot(x, y, "s-", color=_STATIC, ms=6, lw=1.2, label="one width, and its UF")
        _name_points(axis, static, [*zip(x, y, strict=True)], _STATIC, (5, -11))
        if dynamic:
            x, y = [_cost(row, by_macs) for row in dynamic], [row.values[name] for row in dynamic]
            axis.plot(x, y, "o-", color=_DYNAMIC, ms=6, lw=1, label="router, and its budget")
            _name_points(axis, dynamic, [*zip(x, y, strict=True)], _DYNAMIC, (-4, 5))
        axis.margins(0.07, 0.13)
        axis.set_title(f"noisy: {noisy.values[name]:.{METRICS[name].digits}f}", fontsize=9, loc="right", color="0.4")
        axis.set_ylabel(METRICS[name].title)
        axis.set_xlabel(x_label)
        if by_macs:
            axis.xaxis.set_major_formatter(lambda macs, _: f"{macs:,.0f}")
        axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _name_points(
    axis: Axes, rows: Sequence[MeanScores], places: Sequence[tuple[float, float]], color: str, offset: tuple[int, int]
) -> None:
    """Write the UF or budget of every point beside it."""
    side = "left" if offset[0] > 0 else "right"
    for row, place in zip(rows, places, strict=True):
        name = f"{row.uf.budget if isinstance(row.uf, Dynamic) else row.uf:g}"
        axis.annotate(name, place, offset, textcoords="offset points", fontsize=8, color=color, ha=side)


def _cost(row: MeanScores, by_macs: bool) -> float:
    cost = row.macs_per_sample if by_macs else row.average_uf
    assert cost is not None
    return cost


def draw_scatter(report: Report) -> Figure:
    """Average UF of every file over the SI-SDR of its input, per budget, with the distributions at the margins."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    points = use_by_input(report)
    figure = _figure(6.2, "Width used over input SI-SDR, one point per file")
    grid = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5))
    axis = figure.add_subplot(grid[1, 0])
    top, side = figure.add_subplot(grid[0, 0], sharex=axis), figure.add_subplot(grid[1, 1], sharey=axis)
    levels = next(iter(points.values()))[0]
    top.hist(levels, bins=20, color="0.6")
    for index, (budget, (x, y)) in enumerate(sorted(points.items())):
        colour = colormaps["plasma"](0.1 + 0.75 * index / max(len(points) - 1, 1))
        rho = rank_correlation(x, y)
        axis.plot(x, y, "o", ms=4, alpha=0.7, color=colour, label=f"budget {budget:g}: rank correlation {rho:.2f}")
        axis.axhline(budget, color=colour, lw=0.6, ls=":")
        side.hist(y, bins=[step / 40 for step in range(41)], orientation="horizontal", color=colour, alpha=0.6)
    axis.set_xlabel("SI-SDR of the input [dB]")
    axis.set_ylabel("average UF")
    axis.set_ylim(0, 1.05)
    # Outside: files may lie anywhere.
    figure.legend(loc="outside lower center", fontsize=8)
    for margin, counts in ((top, top.yaxis), (side, side.xaxis)):
        margin.tick_params(labelbottom=margin is side, labelleft=margin is top, labelsize=8)
        counts.set_major_locator(MaxNLocator(3, integer=True))
    top.set_ylabel("files", fontsize=8)
    side.set_xlabel("files", fontsize=8)
    return figure


def draw_shares(report: Report) -> Figure:
    """Share of the frames at each UF, one bar per budget."""
    from matplotlib import colormaps

    rows = [row for row in report.means() if isinstance(row.uf, Dynamic)]
    figure = _figure(1.5 + 0.55 * len(rows), "Frames by UF")
    axis = figure.subplots()
    left = np.zeros(len(rows))
    for index, uf in enumerate(report.macs):
        share = np.array([row.shares[index] for row in rows])
        colour = colormaps[_UFS](index / max(len(report.macs) - 1, 1))
        bars = axis.barh(range(len(rows)), share, left=left, color=colour, label=f"UF {uf:g}")
        texts = [f"{value:.0%}" if value >= 0.04 else "" for value in share]
        axis.bar_label(bars, texts, label_type="center", fontsize=8, color="white" if index < 2 else "black")
        left += share
    axis.set_yticks(range(len(rows)), [f"{label(row.uf)}\naverage {row.average_uf:.2f}" for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of frames")
    figure.legend(loc="outside lower center", ncols=len(report.macs), fontsize=8)
    return figure


def draw_trace(trace: Trace, title: str) -> Figure:
    """SNR improvement, spectrogram and UF of every frame, one below the other, the drop of the noise marked."""
    figure = _figure(6.5, title)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(1.2, 2, 1.2))
    seconds = len(trace.noisy) / trace.sample_rate
    axes[0].plot(trace.times, trace.improvement, color=_STATIC)
    axes[0].set_ylabel("SNR gain [dB]")
    level = spectrogram(trace.noisy, trace.sample_rate)
    top = 5 * np.ceil(np.percentile(level, 99.9) / 5)
    extent = (0.0, seconds, 0.0, trace.sample_rate / 2000)
    axes[1].imshow(level, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - 60, vmax=top)
    axes[1].set_ylabel("noisy: frequency [kHz]")
    _draw_ufs(axes[2], trace)
    for axis in (axes[0], axes[2]):
        axis.axvspan(*trace.drop, color="0.85", zorder=0)
        axis.grid(alpha=0.3)
    for edge in trace.drop:
        axes[1].axvline(edge, color="white", lw=1, ls="--")
    axes[2].set_xlabel("time [s]")
    axes[2].set_xlim(0, seconds)
    return figure


def _draw_ufs(axis: Axes, trace: Trace) -> None:
    time = np.arange(len(trace.chosen)) * trace.hop / trace.sample_rate
    axis.step(time, trace.chosen, where="post", color=_DYNAMIC, lw=0.8)
    axis.set_yscale("log", base=2)
    axis.set_ylim(trace.ufs[0] / 1.3, trace.ufs[-1] * 1.3)
    axis.set_yticks(trace.ufs, [f"{uf:g}" for uf in trace.ufs])
    axis.set_ylabel(f"UF, budget {trace.budget:g}")
    axis.set_title(
        f"average UF {trace.average_uf(inside=True):.2f} while the noise is 10 dB softer, "
        f"{trace.average_uf(inside=False):.2f} otherwise",
        fontsize=9,
        loc="right",
    )
