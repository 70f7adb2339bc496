"""Write measured tables into the documents.

    python -m bench.tables            # rewrite every table
    python -m bench.tables --check    # change nothing; exit status 1 if a table is out of date

A document asks for a table by a line ``<!-- table: NAME -->``; the table follows, up to ``<!-- end of table -->``.
MACs are counted on the bundled weights as this script runs. Quality is read from ``bench/results/quality.json``, which

    slimse evaluate NOISY CLEAN --budget 0.15 --budget 0.25 --budget 0.5 --budget 0.75 --json bench/results/quality.json

writes, and which is measured again whenever the bundled weights change. ``live.json`` is what
``python -m bench.streaming --json`` prints, ``tools.json`` and ``tool-times.json`` are what ``python -m bench.tools``
writes with ``--json``. Times on a GPU are read from the folders that `bench/gpu_run.sh` made in ``bench/results``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import slimse
from bench.report import Times, summary
from bench.session import lines
from slimse.evaluation import METRICS
from slimse.profiling import ModelProfile, profile

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/concepts.md", "docs/results.md", "docs/your-network.md")
QUALITY = ROOT / "bench" / "results" / "quality.json"
LIVE = ROOT / "bench" / "results" / "live.json"
TOOLS = ROOT / "bench" / "results" / "tools.json"
TOOL_TIMES = ROOT / "bench" / "results" / "tool-times.json"
NETWORKS = ROOT / "bench" / "results" / "networks.json"
PUBLISHED_MACS = (8_944, 15_664, 29_104, 55_985)
"""Per input sample, at UF 0.125, 0.25, 0.5 and 1.0 (arXiv 2507.04879)."""
_TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its first column to the left and all others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def macs(result: ModelProfile) -> str:
    """What each width costs, beside what the paper publishes."""
    widths = result.widths
    head = ["", *(f"UF {width.uf:g}" for width in widths)]
    widest = widths[-1].macs_per_sample
    rows = [
        ["MACs per sample", *(f"{width.macs_per_sample:,.0f}" for width in widths)],
        ["published", *(f"{count:,}" for count in PUBLISHED_MACS)],
        ["saving", *(f"{widest / width.macs_per_sample:.2f}x" for width in widths)],
        ["weights read per frame (fp32)", *(f"{width.weight_bytes_per_frame / 1e6:.1f} MB" for width in widths)],
    ]
    return markdown(head, rows)


def name(row: dict[str, Any]) -> str:
    """What a row of scores was measured on."""
    if row["uf"] is None:
        return "noisy input"
    return f"fixed UF {row['uf']:g}" if row["budget"] is None else f"router, budget {row['budget']:g}"


def quality(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Mean scores of the noisy input, of each fixed UF and of each budget."""
    head = ["", "average UF", "MACs per sample", *(METRICS[metric].title for metric in metrics)]
    lines = []
    for row in rows:
        cost = ["", ""] if row["uf"] is None else [f"{row['uf']:.3f}", f"{row['macs_per_sample']:,.0f}"]
        lines.append([name(row), *cost, *(f"{row[metric]:.{METRICS[metric].digits}f}" for metric in metrics)])
    return markdown(head, lines)


def on_gpus(results: Path, *, short: bool) -> str:
    """Times of the runs in a folder of results, or that there are none; ``short`` is one sentence."""
    entries = [row for path in sorted(results.glob("*/times.jsonl")) for row in lines(path) if "stats" in row]
    times = Times(entries)
    points = [point for point in times.points() if not point[0].startswith(("CPU", "rehearsal"))]
    if not points:
        return "Not measured on a GPU.\n"
    if short:
        return (
            f"Times on a GPU ({', '.join(sorted({point[0] for point in points}))}): [results](docs/results.md#gpu).\n"
        )
    parts = [
        "\n".join(["", f"{point[0]}, batch {point[1]}, {point[2]}:", "", *summary(times, point)]) for point in points
    ]
    return "\n".join(parts) + "\n"


def networks(rows: Sequence[dict[str, Any]]) -> str:
    """What `bench/your_network.py` measured of networks that nobody wrote for slimming."""
    head = ["network", "groups cut", "lines of code", "MACs", "error", "time", "extract(0.25)", "saved", "pairs"]
    lines = []
    for row in rows:
        if row["missing"]:
            lines.append([row["network"], f"not measured: {row['missing']}", *[""] * (len(head) - 2)])
            continue
        saved, possible = 1 - row["times"][1], 1 - row["extracted"]
        lines.append(
            [
                *(row["network"], f"{row['cut']} of {row['groups']}", str(row["lines"])),
                ", ".join(f"{share:.2f}" for share in row["macs"]),
                ", ".join(f"{error:.0e}" if error else "0" for error in row["errors"]),
                ", ".join(f"{time:.2f}" for time in row["times"]),
                *(f"{row['extracted']:.2f}", f"{saved / possible:.2f}", str(row["pairs"])),
            ]
        )
    return markdown(head, lines)


def tool_quality(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Mean and interval of each score that `bench/tools.py` gave each tool."""
    names = list(next(iter(found.values())))
    head = ["", *(METRICS[name].heading or METRICS[name].title for name in names)]
    rows = []
    for tool, scores in found.items():
        cells = [
            f"{one['mean']:.{METRICS[name].digits}f} ± {one['half_width']:.{METRICS[name].digits}f}"
            for name, one in scores.items()
        ]
        rows.append([tool, *cells])
    return markdown(head, rows)


def tool_times(found: Sequence[dict[str, Any]]) -> str:
    """Times of a hop that `bench/tools.py` took, and their share of what the hop lasts."""
    head = ["ms per hop", "hop", "back to back", "share", "paced", "share"]
    rows = []
    for row in found:
        busy, paced, hop = row["busy"], row["paced"], row["hop"]
        cells = [f"{busy:.2f}", f"{busy / hop:.1%}", f"{paced:.2f}", f"{paced / hop:.1%}"]
        rows.append([row["stream"], f"{hop:.0f}", *cells])
    return markdown(head, rows)


def tools_short(scores: dict[str, dict[str, dict[str, float]]], spent: Sequence[dict[str, Any]]) -> str:
    """Quality and paced time of the tools that have both, the best PESQ first."""
    names, times = ("pesq", "si_sdr"), {row["stream"]: row for row in spent}
    rows = []
    for tool, found in sorted(scores.items(), key=lambda item: -item[1]["pesq"]["mean"]):
        if tool in times and "int8" not in tool:
            paced, hop = times[tool]["paced"], times[tool]["hop"]
            values = [f"{found[name]['mean']:.{METRICS[name].digits}f}" for name in names]
            rows.append([tool, *values, f"{paced:.2f}", f"{paced / hop:.1%}"])
    return markdown(["", *(METRICS[name].title for name in names), "ms per hop", "of the hop"], rows)


LIVE_ROWS = {
    "eager": "eager PyTorch, sliced weights",
    "onnx": "ONNX Runtime, a session per UF",
    "numba": "numba",
    "float16": "numba, float16 weights",
    "int8": "numba, int8 weights",
}


def live(found: dict[str, Any], kind: str) -> str:
    """Times of a frame that `bench/streaming.py` took, ``kind`` being back to back or paced."""
    ufs = [f"UF {uf:g}" for uf in slimse.SlimDemucsConfig().ufs]
    drawn = kind == "back to back"
    rows = []
    for name, title in LIVE_ROWS.items():
        cells = [f"{ms:.2f}" for ms in found[kind][name]] + [f"{found[f'gain {kind}'][name]:.1f}"]
        rows.append([title, *cells, *([f"{found['random'][name]['over the mean of the UFs']:.2f}"] if drawn else [])])
    return markdown(["", *ufs, "gain", *(["mixed"] if drawn else [])], rows)


def tables() -> dict[str, Callable[[], str]]:
    """What makes each table, by the name that documents use."""
    rows, frames = _read(QUALITY)["means"], _read(LIVE)
    scores, spent = _read(TOOLS)["quality"], _read(TOOL_TIMES)["times"]
    return {
        "macs": lambda: macs(profile(slimse.load())),
        "quality": lambda: quality(rows, [metric for metric in METRICS if metric in rows[0]]),
        "tools": lambda: tool_quality(scores),
        "tool-times": lambda: tool_times(spent),
        "tools-short": lambda: tools_short(scores, spent),
        "live": lambda: live(frames, "back to back"),
        "live-paced": lambda: live(frames, "paced"),
        "networks": lambda: networks(_read(NETWORKS)),
        "gpu": lambda: on_gpus(QUALITY.parent, short=True),
        "gpu-times": lambda: on_gpus(QUALITY.parent, short=False),
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def filled(text: str, makers: dict[str, Callable[[], str]]) -> str:
    """Return ``text`` with every table made anew.

    Raises:
        ValueError: for a name that is not in ``makers``.
    """

    def table(match: re.Match[str]) -> str:
        if match[2] not in makers:
            raise ValueError(f"table {match[2]!r}: expected one of {sorted(makers)}")
        return match[1] + makers[match[2]]() + match[3]

    return _TABLE.sub(table, text)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a table is out of date")
    check, makers = parser.parse_args().check, tables()
    old = [document for document in DOCUMENTS if not _up_to_date(ROOT / document, makers, write=not check)]
    for document in old:
        print(f"{document}: tables {'are out of date' if check else 'rewritten'}")
    if check and old:
        raise SystemExit(1)


def _up_to_date(path: Path, makers: dict[str, Callable[[], str]], *, write: bool) -> bool:
    text = path.read_text(encoding="utf-8")
    new = filled(text, makers)
    if write and new != text:
        path.write_text(new, encoding="utf-8")
    return new == text


if __name__ == "__main__":
    main()
