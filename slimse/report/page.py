"""One page with a table and all pictures."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import __version__
from ..atomic import written_whole
from ..demo_page import PLAYER_SCRIPT
from ..evaluation import METRICS, Pair, Report, evaluate_pairs, read_pair
from ..evaluation.metrics import SAMPLE_RATE
from ..evaluation.results import label, versions
from ..evaluation.routing import sentences, summarise
from ..model import SlimModel
from .figures import draw_front, draw_scatter, draw_shares, draw_trace
from .listening import listening_part
from .trace import drop_effect, trace_drop

METRIC_NAMES = ("pesq", "stoi", "si_sdr", "p808")
_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 1.5rem auto; padding: 0 1rem; color: #222 }
h1, h3 { overflow-wrap: anywhere } h2 { margin: 2rem 0 .3rem } h3 { font-size: 1rem; margin: 1rem 0 .2rem }
ul { padding-left: 1.2rem } p.note, small { color: #666 } audio { width: 100%; height: 2.2rem }
.players, .pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)) }
.players, .pictures { gap: .7rem }
.players p { margin: 0; font-size: .9rem } figure { margin: 0 } figcaption { font-size: .9rem } img { width: 100% }
table { border-collapse: collapse; width: 100% } td, th { padding: .3rem .5rem; text-align: right; vertical-align: top }
tr { border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left } td small { display: block }
@media (max-width: 48rem) {
  thead { display: none } table, tbody { display: block } td:empty { display: none }
  tr { display: grid; grid-template-columns: 1fr 1fr; padding: .4rem 0 } td { text-align: left; padding: .15rem 0 }
  td:first-child { grid-column: 1 / -1; font-weight: bold }
  td[data-title]::before { content: attr(data-title); display: block; color: #666; font-size: .8rem }
}
"""
_WORDS = """
<li>The <b>utilization factor</b> (UF) is the share of the network's channels that run. UF 1 is the whole network.</li>
<li><b>MACs per sample</b> are multiply-accumulates: what the network computes for each sample of sound.</li>
<li>A <b>budget</b> is an average UF. The router gives hard frames (16 ms each) more of it than easy ones.</li>
"""
_CAPTIONS = {
    "front_uf": "Scores over average UF. Up is better, left is cheaper. The line joins the fixed widths; a router is "
    "of use where its points lie above it.",
    "front_macs": "The same over all that is computed, the router included.",
    "shares": "How often each UF is used, per budget.",
    "scatter": "One point per file: how noisy it is (left is noisier), and how much width the router gives it.",
    "trace": "One file, its noise made softer for a second: how much noise is removed, the sound, and the UF of "
    "every frame.",
}
"""By name of the picture."""


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
        budgets: one or more; trace and players are of the one nearest 0.5.
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
    trace = trace_drop(model, *read_pair(chosen), middle)
    clips = [read_pair(pair) for pair in long]
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
        caption = _CAPTIONS[title]
        image = f'<img alt="{caption}" src="data:image/png;base64,{encoded}">'
        pictures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    drops = [effect.to_dict() for effect in effects]
    report.write_json(folder / "report.json", weights=name, routing=summarise(report), noise_drop=drops)
    words = [*sentences(report), *(effect.sentence() for effect in effects)]
    players = listening_part(model, report, pairs, middle)
    failed = [f"left out: {failure.reason}" for failure in report.failures]
    _write(folder / "report.html", _page(report, name, players, words, pictures, failed).encode())
    return report


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as part:
        part.write_bytes(content)


def _pairs_to_trace(pairs: Sequence[Pair]) -> tuple[Pair, list[Pair]]:
    """All pairs of 4 s or more, and before them that to show: as near to 0 dB and as steady in its noise as there is.

    Hard enough to need width, and with a noise that can be heard to drop. A decibel of spread counts as one of SNR.
    """
    long: list[tuple[float, Pair]] = []
    for pair in pairs:
        try:
            noisy, clean = read_pair(pair)
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


def _page(
    report: Report, name: str, players: str, words: Sequence[str], pictures: Sequence[str], failed: Sequence[str]
) -> str:
    count = len(report.files) // len(report.ufs)
    table = "\n".join(f"<tr>{row}</tr>" for row in _rows(report, count))
    titles = ["width", "average UF", "MACs per sample", *(METRICS[metric].title for metric in report.metrics)]
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in titles)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in (*report.notes(), *failed))
    points = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in words)
    meanings = "".join(f"<li><b>{METRICS[m].title}</b> {html.escape(METRICS[m].meaning)}</li>" for m in report.metrics)
    packages = ", ".join(f"{package} {version}" for package, version in versions().items() if version)
    bounds = (
        "In 95 of 100 draws of as many files from these, the mean lies between the two small numbers (bootstrap). "
        "All rows are of the same files, so a difference of two rows can be surer than each of them. "
    )
    title = f"SlimSE {__version__}: {html.escape(name)}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style>\n<h1>{title}</h1>\n<ul>{_WORDS}</ul>\n"
        f"<h2>Listen</h2>\n{players}\n"
        f"<h2>Scores</h2>\n<p>Means over {count} pair{'s' * (count > 1)} of noisy and clean files. More is better. "
        f"{bounds * (count > 1)}MACs of budgets include the router's {report.router_macs:,.0f}.</p>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>{table}</tbody></table>\n{notes}<ul>{meanings}</ul>\n"
        f"<h2>What the router does</h2>\n<ul>{points}</ul>\n"
        f'<h2>Pictures</h2>\n<div class="pictures">{"".join(pictures)}</div>\n'
        f'<p class="note">{html.escape(packages)}</p><script>{PLAYER_SCRIPT}</script></html>\n'
    )


def _rows(report: Report, count: int) -> Iterator[str]:
    """Cells of the table, which say the name of their column where the page is narrow."""
    for row in report.means():
        average = "" if row.average_uf is None else f"{row.average_uf:.3f}"
        macs = "" if row.macs_per_sample is None else f"{row.macs_per_sample:,.0f}"
        cells = [_cell("average UF", average), _cell("MACs per sample", macs)]
        for metric in report.metrics:
            digits, found = METRICS[metric].digits, row.intervals[metric]
            known = not math.isnan(found.mean)
            bounds = f" <small>{found.low:.{digits}f} to {found.high:.{digits}f}</small>" if known and count > 1 else ""
            cells.append(_cell(METRICS[metric].title, f"{found.mean:.{digits}f}{bounds}" if known else "-"))
        yield f"<td>{html.escape(label(row.uf))}</td>" + "".join(cells)


def _cell(title: str, content: str) -> str:
    return f'<td data-title="{html.escape(title)}">{content}</td>'
