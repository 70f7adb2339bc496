"""Players of a report: a few files, noisy, enhanced and clean."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import torch

from ..demo_page import player
from ..evaluation import METRICS, Dynamic, Pair, Report, read_pair
from ..evaluation.metrics import SAMPLE_RATE
from ..evaluation.results import Width, label
from ..model import SlimModel
from .trace import Signal

SECONDS = 8
"""Of each file, from its start: the page holds the sound."""


def listening_part(model: SlimModel, report: Report, pairs: Sequence[Pair], budget: float) -> str:
    """HTML with players for the noisiest, the middle and the cleanest of the files, by SI-SDR of the input.

    Args:
        model: with a router, on the CPU.
        report: scores of ``pairs`` at the model's UFs and ``budget``.
        pairs: those of the report.
        budget: what is heard of the router.
    """
    widths: list[Width] = [None, min(model.ufs), Dynamic(budget), max(model.ufs)]
    by_name = {pair.name: pair for pair in pairs}
    parts = []
    for rank, name in _chosen(report):
        noisy, clean = (signal[: SECONDS * SAMPLE_RATE] for signal in read_pair(by_name[name]))
        heard = [
            _player(f"{name}, {label(uf)}", _enhanced(model, noisy, uf), _words(report, name, uf)) for uf in widths
        ]
        heard.append(_player(f"{name}, clean", clean, "<b>clean</b>, the target"))
        parts.append(f'<h3>{rank}: {html.escape(name)}</h3><div class="players">{"".join(heard)}</div>')
    return (
        f"<p>The first {SECONDS} s of the noisiest, the middle and the cleanest of the files. Start a player while "
        f"another one plays: it goes on at the same place. Scores are of the whole file.</p>{''.join(parts)}"
    )


def _chosen(report: Report) -> list[tuple[str, str]]:
    """Up to three files and what they are, the noisiest first."""
    levels = [
        (row.scores.values.get("si_sdr", math.nan), row.file)
        for row in report.files
        if row.uf is None and math.isfinite(row.scores.values.get("si_sdr", math.nan))
    ]
    names = [name for _, name in sorted(levels)]
    places = {"Noisiest": 0, "Cleanest": len(names) - 1, "Middle": len(names) // 2}
    kept = {names[place]: rank for rank, place in reversed(places.items())} if names else {}
    return [(kept[name], name) for name in names if name in kept]


def _enhanced(model: SlimModel, noisy: Signal, uf: Width) -> Signal:
    if uf is None:
        return noisy
    signal = torch.from_numpy(noisy)[None, None]
    with torch.no_grad():
        width = model.route(signal, uf.budget) if isinstance(uf, Dynamic) else uf
        found: Signal = model(signal, width)[0, 0].numpy()
    return found


def _words(report: Report, name: str, uf: Width) -> str:
    """What is played, and its scores."""
    (row,) = (row for row in report.files if row.file == name and row.uf == uf)
    scores = [
        f"{METRICS[metric].title.split(',')[0]} {row.scores.values[metric]:.{METRICS[metric].digits}f}"
        for metric in report.metrics
        if metric not in row.scores.excluded
    ]
    average, _ = report.cost(uf, report.shares([row]))
    used = f" (average UF {average:.2f})" if isinstance(uf, Dynamic) else ""
    return f"<b>{label(uf)}</b>{used}: {', '.join(scores)}"


def _player(name: str, audio: Signal, words: str) -> str:
    return f"<div><p>{words}</p>{player(audio, SAMPLE_RATE, name)}</div>"
