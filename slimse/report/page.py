"""One page with a table and all pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .. import __version__
from ..atomic import written_whole
from ..audio.files import read_mono
from ..evaluation import METRICS, Dynamic, Report, evaluate_pairs
from ..evaluation.evaluate import Pair
from ..evaluation.metrics import SAMPLE_RATE
from ..evaluation.results import label, versions
from ..evaluation.routing import sentences, summarise
from ..model import SlimModel
from .figures import draw_front, draw_scatter, draw_shares, draw_trace
from .trace import Signal, drop_effect, trace_drop

METRIC_NAMES = ("pesq", "stoi", "si_sdr", "p808")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { max-width: 100% } table { border-collapse: collapse } td, th { padding: .25rem .7rem; text-align: right }
tr { border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left } p.note { color: #666 }
"""


def write_report(
    model: SlimModel,
    name: str,
    pairs: Sequence[Pair],
    folder: Path,
    budgets: Sequence[float],
    *,
    jobs: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Score pairs at every UF and budget, and write ``report.html``, its pictures and ``report.json`` into a folder.

    Args:
        model: with a router, on the CPU.
        name: of the weights, for the title.
        pairs: from `slimse.evaluation.find_pairs`.
        folder: made if it is missing.
        budgets: one or more; the trace is of the one nearest 0.5.
        jobs: processes.
        progress: called with the number of pairs done.

    Returns:
        The scores.

    Raises:
        ValueError: for a model without a router, no budgets, or no pair that is long enough for the trace.
    """
    if not budgets:
        raise ValueError("budgets is empty: expected 1 or more")
    chosen, long = _pairs_to_trace(pairs)
    report = evaluate_pairs(pairs, model, budgets=budgets, metrics=METRIC_NAMES, jobs=jobs, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    middle = min(budgets, key=lambda budget: abs(budget - 0.5))
    trace = trace_drop(model, *_read(chosen), middle)
    clips = [_read(pair) for pair in long]
    effects = [drop_effect(model, clips, budget) for budget in sorted(budgets)]
    figures = {
        "front_uf": draw_front(report, by_macs=False),
        "front_macs": draw_front(report, by_macs=True),
        "shares": draw_shares(report),
        "scatter": draw_scatter(report),
        "trace": draw_trace(trace, f"{chosen.name}, the noise 10 dB softer for a second"),
    }
    pictures = []
    for title, figure in figures.items():
        png = io.BytesIO()
        figure.savefig(png, format="png")
        _write(folder / f"{title}.png", png.getvalue())
        encoded = base64.b64encode(png.getvalue()).decode()
        pictures.append(f'<p><img alt="{title}" src="data:image/png;base64,{encoded}"></p>')
    drops = [effect.to_dict() for effect in effects]
    report.write_json(folder / "report.json", weights=name, routing=summarise(report), noise_drop=drops)
    words = [*sentences(report), *(effect.sentence() for effect in effects)]
    _write(folder / "report.html", _page(report, name, words, pictures).encode())
    return report


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as part:
        part.write_bytes(content)


def _read(pair: Pair) -> tuple[Signal, Signal]:
    noisy, clean = read_mono(pair.noisy, SAMPLE_RATE), read_mono(pair.clean, SAMPLE_RATE)
    length = min(len(noisy), len(clean))
    return noisy[:length], clean[:length]


def _pairs_to_trace(pairs: Sequence[Pair]) -> tuple[Pair, list[Pair]]:
    """All pairs of 4 s or more, and before them that to show: as near to 0 dB and as steady in its noise as there is.

    Hard enough to need width, and with a noise that can be heard to drop. A decibel of spread counts as one of SNR.
    """
    long: list[tuple[float, Pair]] = []
    for pair in pairs:
        try:
            noisy, clean = _read(pair)
        except ValueError:
            # The evaluation names it.
            continue
        if len(noisy) < 4 * SAMPLE_RATE:
            continue
        noise, speech = (np.square(x, dtype=np.float64) for x in (noisy - clean, clean))
        size = SAMPLE_RATE // 4
        levels = 10 * np.log10(noise[: len(noise) // size * size].reshape(-1, size).mean(1) + 1e-9)
        snr = 10 * np.log10((speech.mean() + 1e-12) / (noise.mean() + 1e-12))
        long.append((abs(float(snr)) + float(levels.std()), pair))
    if not long:
        raise ValueError("no pair lasts 4 s: expected one at least, to trace the router on")
    return min(long, key=lambda entry: entry[0])[1], [pair for _, pair in long]


def _page(report: Report, name: str, words: Sequence[str], pictures: Sequence[str]) -> str:
    count = len(report.files) // len(report.ufs)
    cells = ["width", "average UF", "MACs per sample", *(METRICS[metric].title for metric in report.metrics)]
    rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in cells)]
    for row in report.means():
        values = [f"{row.values[metric]:.{METRICS[metric].digits}f}" for metric in report.metrics]
        average = "" if row.average_uf is None else f"{row.average_uf:.3f}"
        macs = "" if row.macs_per_sample is None else f"{row.macs_per_sample:,.0f}"
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in (label(row.uf), average, macs, *values)))
    table = "\n".join(f"<tr>{row}</tr>" for row in rows)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in report.notes())
    points = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in words)
    packages = ", ".join(f"{package} {version}" for package, version in versions().items() if version)
    budgets = any(isinstance(uf, Dynamic) for uf in report.ufs)
    router = f" MACs of budgets include the router's {report.router_macs:,.0f}." if budgets else ""
    title = f"SlimSE {__version__}: {html.escape(name)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>\n'
        f"<h1>{title}</h1>\n<p>Means over {count} pairs of noisy and clean files; more is better.{router}</p>\n"
        f"<table>{table}</table>\n{notes}\n<ul>{points}</ul>\n{''.join(pictures)}\n"
        f'<p class="note">{html.escape(packages)}</p></html>\n'
    )
