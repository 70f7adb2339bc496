"""Turn times into a Markdown report and plots.

    python -m bench.report times.json --out DIR

reads what ``pytest bench --benchmark-json=times.json`` or ``python -m bench.gpu`` wrote, and writes ``report.md``,
``speedup.png`` and ``blocks.png``, and of live frames ``live.svg`` (these need matplotlib). A time on a GPU comes from
a GPU, whose name the report bears; what is missing is called not measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.points import MIXTURE

NOT_MEASURED = "not measured"
BASELINES = ("sliced", "compiled", "full", "masked", "onnx")
LIVE = "live frame"
NAMES = {
    "slimse": "SlimSE, numba",
    "sliced": "eager PyTorch, prefix views",
    "compiled": "torch.compile, a graph per UF",
    "onnx": "ONNX Runtime, a session per UF",
}
"""Implementations of a live frame, in words."""
Key = tuple[str, int, str, str, Any]
"""Device, batch, number format, label and UF."""


class Times:
    """Median seconds by device, batch, number format, label, UF and implementation."""

    def __init__(self, entries: Iterable[dict[str, Any]]) -> None:
        self.seconds: dict[tuple[Key, str], float] = {}
        self.host: dict[tuple[Key, str], float | None] = {}
        self.clock: dict[tuple[Key, str], str] = {}
        self.info: dict[Key, dict[str, Any]] = {}
        for entry in entries:
            info = entry["extra_info"]
            key = (info["device"], info["batch"], info["kind"], info["label"], info["uf"])
            self.seconds[key, info["implementation"]] = entry["stats"]["median"]
            self.host[key, info["implementation"]] = entry["stats"].get("host")
            self.clock[key, info["implementation"]] = entry["stats"].get("clock", "wall")
            self.info[key] = info

    def points(self) -> list[tuple[str, int, str]]:
        """Device, batch and number format of what was measured."""
        return sorted({key[:3] for key in self.info})

    def labels(self, point: tuple[str, int, str]) -> list[str]:
        """Cases at a point, in the order in which they were measured."""
        return list(dict.fromkeys(key[3] for key in self.info if key[:3] == point))

    def row(self, point: tuple[str, int, str], label: str, uf: Any) -> dict[str, float]:
        """All that is known of a case at a UF; what is not is missing."""
        key, wide = (*point, label, uf), (*point, label, 1.0)
        row: dict[str, float] = {}
        if key not in self.info:
            return row
        now, full = self.info[key], self.info.get(wide)
        if full and now["macs"]:
            row["saving"] = full["macs"] / now["macs"]
        if full and now["roofline"]:
            row["attainable"] = full["roofline"] / now["roofline"]
        ours, ours_wide = self.seconds.get((key, "slimse")), self.seconds.get((wide, "slimse"))
        if ours:
            row["seconds"] = ours
        if host := self.host.get((key, "slimse")):
            row["host"] = host
        if ours and ours_wide:
            row["measured"] = ours_wide / ours
        if ours and now["roofline"]:
            row["of roofline"] = now["roofline"] / ours
        for name in BASELINES:
            theirs = self.seconds.get((key, name))
            if ours and theirs:
                row[name] = theirs / ours
        return row

    def mixing(self, point: tuple[str, int, str], label: str) -> float | None:
        """Time of the mixture over the mean of the uniform times, weighted by their shares."""
        ours = {uf: self.seconds.get(((*point, label, uf), "slimse")) for uf in [*MIXTURE, "mixture"]}
        if None in ours.values():
            return None
        return ours["mixture"] / sum(share * ours[uf] for uf, share in MIXTURE.items())  # type: ignore[operator]


def table(times: Times, point: tuple[str, int, str]) -> list[str]:
    """Markdown lines of one device, batch and number format."""
    heads = [*("case", "UF", "time", "host", "MAC saving", "attainable", "measured", "of roofline")]
    heads += [f"vs {baseline}" for baseline in BASELINES]
    names = ["saving", "attainable", "measured", "of roofline", *BASELINES]
    lines = ["| " + " | ".join(heads) + " |", "| --- | ---: |" + " ---: |" * (len(heads) - 2)]
    for label in times.labels(point):
        for uf in sorted({key[4] for key in times.info if key[:4] == (*point, label)}, key=str):
            row = times.row(point, label, uf)
            spans = [f"{1e3 * row[name]:.3f} ms" if name in row else NOT_MEASURED for name in ("seconds", "host")]
            # Host and device together, where the call could not be replayed without the host.
            together = times.clock.get(((*point, label, uf), "slimse"), "").startswith("stream")
            spans[0] += " (with host)" if together else ""
            missing = {} if times.info[*point, label, uf]["roofline"] else {"of roofline": "no roofline"}
            missing |= {} if "attainable" in row else {"attainable": "no roofline"}
            cells = [f"{row[name]:.2f}" if name in row else missing.get(name, NOT_MEASURED) for name in names]
            lines.append(f"| {label} | {uf} | " + " | ".join([*spans, *cells]) + " |")
    mixed = [(label, times.mixing(point, label)) for label in times.labels(point)]
    lines += ["", "Mixture over the share-weighted mean of the uniform times:", ""]
    return [*lines, *(f"- {label}: {NOT_MEASURED if ratio is None else f'{ratio:.2f}'}" for label, ratio in mixed)]


def summary(times: Times, point: tuple[str, int, str]) -> list[str]:
    """Markdown lines of one point, short: of the op its time, roofline over time, and baselines over time."""
    lines = [
        "| case | UF | time | of roofline | vs torch.compile | vs cuDNN | speed-up | attainable | MAC saving |",
        "| --- | ---: |" + " ---: |" * 7,
    ]
    for label in times.labels(point):
        for uf in (1.0, 0.5, 0.25, 0.125, "mixture"):
            row = times.row(point, label, uf)
            if "seconds" in row:
                names = ("of roofline", "compiled", "sliced", "measured", "attainable", "saving")
                cells = [f"{row[name]:.2f}" if name in row else "-" for name in names]
                lines.append(f"| {label} | {uf} | {1e3 * row['seconds']:.3f} ms | " + " | ".join(cells) + " |")
    return lines


def write(entries: Iterable[dict[str, Any]], folder: Path, notes: Iterable[str] = ()) -> Path:
    """Write the report and its plots.

    Args:
        entries: of ``benchmarks`` in the JSON.
        folder: where to, created if it is missing.
        notes: lines to stand above the tables.

    Returns:
        Path of the report.
    """
    times = Times(entries)
    folder.mkdir(parents=True, exist_ok=True)
    devices = sorted({point[0] for point in times.points()})
    gpus = [device for device in devices if not device.startswith(("CPU", "rehearsal"))]
    lines = [
        "# Times of the slimmable ops",
        "",
        f"Devices: {', '.join(devices)}. GPU: {', '.join(gpus) if gpus else NOT_MEASURED}.",
        "",
        "Time: median of the op, on a GPU of CUDA graph replays. Host: how long a call keeps the host busy. MAC",
        "saving, attainable (by the roofline), measured: at UF 1 over at the UF. Of roofline: the least time that the",
        "ceilings allow, over the time; those of a GPU are measured in the same run. Versus: time of the baseline over",
        "that of the op, the baseline being torch's layers (cuDNN) on sliced weights, the same compiled, at full",
        "width, at full width with masks, and ONNX Runtime.",
        *(["", *notes] if notes else []),
    ]
    for point in times.points():
        device, batch, kind = point
        lines += ["", f"## {device}, batch {batch}, {kind}", "", *table(times, point)]
    if importlib.util.find_spec("matplotlib"):
        lines += _plots(times, folder)
    else:
        lines += ["", "No plots: matplotlib is not installed."]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _plots(times: Times, folder: Path) -> list[str]:
    """Draw what there are times of; returns lines that show it."""
    import matplotlib

    matplotlib.use("Agg")
    lines = []
    if any(label == LIVE for point in times.points() for label in times.labels(point)):
        _plot_live(times, folder)
        lines += ["", "![Speed-up of a live frame against MAC saving](live.svg)"]
    if any(label != LIVE for point in times.points() for label in times.labels(point)):
        _plot(times, folder)
        lines += ["", "![Speed-up against MAC saving](speedup.png)", "", "![Time per block](blocks.png)"]
    return lines


def live_speedups(times: Times) -> dict[str, list[tuple[float, float, float]]]:
    """Per implementation of a live frame: MAC saving, gain over its own UF 1, and gain over eager PyTorch at UF 1."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for point in times.points():
        device, batch, kind = point
        eager = times.seconds.get(((device, batch, "fp32", LIVE, 1.0), "sliced"))
        for name, words in NAMES.items():
            for uf in MIXTURE:
                key, wide = (*point, LIVE, uf), (*point, LIVE, 1.0)
                mine, own = times.seconds.get((key, name)), times.seconds.get((wide, name))
                if mine and own and eager:
                    row = times.info[wide]["macs"] / times.info[key]["macs"], own / mine, eager / mine
                    found.setdefault(words if kind == "fp32" else f"{words}, {kind}", []).append(row)
    return found


def _plot_live(times: Times, folder: Path) -> None:
    """Speed-up of a live frame against MAC saving."""
    import matplotlib.pyplot as plt

    figure, (own, eager) = plt.subplots(1, 2, figsize=(11, 4.5))
    speedups = sorted(live_speedups(times).items())
    for words, rows in speedups:
        saving, gain, faster = zip(*sorted(rows), strict=True)
        own.plot(saving, gain, "o-", label=words)
        eager.plot(saving, faster, "o-", label=words)
    ends = [1, max(row[0] for _, rows in speedups for row in rows)]
    own.plot(ends, ends, "k:", linewidth=1, label="all that is saved")
    own.set(xlabel="MAC saving", ylabel="speed-up over its own UF 1")
    eager.set(xlabel="MAC saving", ylabel="speed-up over eager PyTorch at UF 1")
    own.legend(fontsize=7)
    figure.suptitle(f"A live frame, {', '.join(sorted({point[0] for point in times.points()}))}")
    figure.tight_layout()
    # Small, and the same file from the same times.
    with plt.rc_context({"svg.hashsalt": LIVE, "svg.fonttype": "none"}):
        figure.savefig(folder / "live.svg", metadata={"Date": None})
    plt.close(figure)


def _plot(times: Times, folder: Path) -> None:
    """Speed-up against MAC saving with what is attainable, and time per block, of the largest batch."""
    import matplotlib.pyplot as plt

    points = [point for point in times.points() if point[1] == max(p[1] for p in times.points())]
    figures = [plt.subplots(1, len(points), figsize=(6 * len(points), 5), squeeze=False) for _ in range(2)]
    for column, point in enumerate(points):
        scatter, bars = figures[0][1][0, column], figures[1][1][0, column]
        for place, label in enumerate(times.labels(point)):
            rows = [row for uf in MIXTURE if {"measured", "saving"} <= (row := times.row(point, label, uf)).keys()]
            if rows:
                # There are ten colours.
                style = f"{'os^'[place // 10 % 3]}-"
                (line,) = scatter.plot([r["saving"] for r in rows], [r["measured"] for r in rows], style, label=label)
                if all("attainable" in row for row in rows):
                    x, y = zip(*((row["saving"], row["attainable"]) for row in rows), strict=True)
                    scatter.plot(x, y, "--", color=line.get_color())
        blocks = [label for label in times.labels(point) if label.split()[0] in ("encoder", "decoder")]
        for place, uf in enumerate([*MIXTURE, "mixture"]):
            heights = [1e3 * times.row(point, label, uf).get("seconds", 0.0) for label in blocks]
            bars.bar([index + 0.16 * place for index in range(len(blocks))], heights, 0.16, label=str(uf))
        bars.set_xticks(range(len(blocks)), blocks, rotation=45, ha="right")
        rows = [times.row(point, label, uf) for uf in MIXTURE for label in times.labels(point)]
        savings = [row["saving"] for row in rows if "saving" in row]
        ends = [1, max(savings, default=1)]
        scatter.plot(ends, ends, "k:", linewidth=1, label="all that is saved")
        scatter.set_xscale("log", base=2)
        scatter.set_yscale("log", base=2)
        for axis in (scatter.xaxis, scatter.yaxis):
            axis.set_major_formatter("{x:g}")
        title = f"{point[0]}, batch {point[1]}, {point[2]}"
        scatter.set(title=title, xlabel="MAC saving", ylabel="speed-up (dashed: attainable)")
        bars.set(title=title, ylabel="ms")
        scatter.legend(fontsize=7)
        bars.legend(title="UF")
    for (figure, _), name in zip(figures, ("speedup", "blocks"), strict=True):
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=100)
        plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Turn times into a report.")
    parser.add_argument("times", nargs="+", type=Path, help="JSON of pytest-benchmark or gpu.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    arguments = parser.parse_args()
    entries = [entry for path in arguments.times for entry in json.loads(path.read_text())["benchmarks"]]
    print(write(entries, arguments.out))


if __name__ == "__main__":
    main()
