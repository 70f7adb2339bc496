"""What an evaluation found: scores by file and width, their means, and the files that hold them."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from .. import __version__
from ..atomic import written_whole
from .intervals import Interval, interval
from .metrics import METRICS, Scores

_PACKAGES = (
    "torch",
    "numpy",
    "soxr",
    "pesq",
    "pystoi",
    "torchmetrics",
    "speechmos",
    "onnxruntime",
    "librosa",
    "distillmos",
)


@dataclass(frozen=True)
class Dynamic:
    """In place of a UF: the router's choice for a budget."""

    budget: float


Width: TypeAlias = float | Dynamic | None
"""What a row of scores is of: a UF, a budget, or None for the noisy input."""


@dataclass(frozen=True)
class FileScores:
    """Scores of one file at one width."""

    file: str
    uf: Width
    scores: Scores
    chosen: tuple[int, ...] = ()
    """Of a budget: frames at each of the model's UFs."""


@dataclass(frozen=True)
class Failure:
    """A pair that could not be scored."""

    file: str
    reason: str
    """One line that names the file and what is wrong with it."""


@dataclass(frozen=True)
class MeanScores:
    """Means over all files at one width."""

    uf: Width
    average_uf: float | None
    """Over all frames of all files; None for the noisy input."""
    shares: tuple[float, ...]
    """Of a budget: share of the frames at each of the model's UFs."""
    macs_per_sample: float | None
    """Over all frames, the router's included for a budget."""
    values: dict[str, float]
    """By name of the metric, over the files that have it; NaN if none has."""
    intervals: dict[str, Interval]
    """The same with their 95 % bootstrap intervals over files."""
    excluded: dict[str, int]
    """Files that a mean leaves out, for metrics with any."""


@dataclass(frozen=True)
class Report:
    """All that an evaluation found."""

    metrics: tuple[str, ...]
    ufs: tuple[Width, ...]
    """None, the noisy input, first; budgets last."""
    files: tuple[FileScores, ...]
    """File by file in the order of the pairs, and within one in the order of ``ufs``."""
    macs: Mapping[float, float] = field(default_factory=dict)
    """MACs per sample by UF, of all that the model has, rising."""
    router_macs: float = 0.0
    """What the router adds to them."""
    failures: tuple[Failure, ...] = ()
    """Pairs that could not be scored, and are in no mean."""

    def means(self) -> list[MeanScores]:
        """One row per UF, in the order of ``ufs``."""
        rows = []
        for uf in self.ufs:
            scores = [row.scores for row in self.files if row.uf == uf]
            shares = self.shares(row for row in self.files if row.uf == uf)
            values, intervals, excluded = {}, {}, {}
            for name in self.metrics:
                known = [s.values[name] for s in scores if name not in s.excluded]
                values[name] = math.fsum(known) / len(known) if known else math.nan
                intervals[name] = interval(known)
                if len(known) < len(scores):
                    excluded[name] = len(scores) - len(known)
            average, macs = self.cost(uf, shares)
            rows.append(MeanScores(uf, average, shares, macs, values, intervals, excluded))
        return rows

    def column(self, uf: Width, metric: str) -> list[float]:
        """Scores of every file at a width, in the order of the files; NaN where undefined."""
        return [row.scores.values[metric] for row in self.files if row.uf == uf]

    def differences(self, earlier: Mapping[str, Any]) -> dict[Width, dict[str, Interval]]:
        """How much better every width does than in an earlier report of the same files, file by file.

        Args:
            earlier: what `write_json` wrote.

        Returns:
            By width and metric, those that both have. The noisy input is not among them.

        Raises:
            ValueError: if the files are not the same, or no width or metric is in both.
        """
        names = list(dict.fromkeys(row.file for row in self.files))
        table = {(row["file"], row["budget"], None if row["budget"] else row["uf"]): row for row in earlier["files"]}
        if {key[0] for key in table} != set(names):
            raise ValueError("the earlier report is of other files: expected the same")
        found: dict[Width, dict[str, Interval]] = {}
        for uf in self.ufs:
            key = (budget_of(uf), None if isinstance(uf, Dynamic) else uf)
            shared = [name for name in self.metrics if name in earlier["metrics"]]
            if uf is None or (names[0], *key) not in table or not shared:
                continue
            found[uf] = {
                name: interval(
                    [
                        math.nan if old is None else new - old
                        for new, old in zip(
                            self.column(uf, name), (table[file, *key][name] for file in names), strict=True
                        )
                    ]
                )
                for name in shared
            }
        if not found:
            raise ValueError("the earlier report shares no width and metric with this one: expected some")
        return found

    @staticmethod
    def shares(rows: Iterable[FileScores]) -> tuple[float, ...]:
        """Share of the frames of ``rows`` at each of the model's UFs; empty for rows that are not of a budget."""
        frames = [sum(counts) for counts in zip(*(row.chosen for row in rows), strict=True)]
        return tuple(count / sum(frames) for count in frames)

    def cost(self, uf: Width, shares: tuple[float, ...]) -> tuple[float | None, float | None]:
        """Average UF and MACs per sample at a width; ``shares`` as from `shares`."""
        if uf is None:
            return None, None
        if not isinstance(uf, Dynamic):
            return uf, self.macs[uf]
        macs = sum(share * cost for share, cost in zip(shares, self.macs.values(), strict=True))
        return sum(share * uf for share, uf in zip(shares, self.macs, strict=True)), macs + self.router_macs

    def notes(self) -> list[str]:
        """One sentence for each mean that leaves files out, with the number of files by reason."""
        notes = []
        for uf in self.ufs:
            for name in self.metrics:
                reasons = [row.scores.excluded.get(name) for row in self.files if row.uf == uf]
                counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons) if reason is not None}
                if counts:
                    why = "; ".join(f"{count}: {reason}" for reason, count in counts.items())
                    notes.append(
                        f"{METRICS[name].title}, {label(uf)}: {sum(counts.values())} of {len(reasons)} files "
                        f"excluded from the mean ({why})"
                    )
        return notes

    def write_csv(self, path: Path) -> None:
        """Write one row per file and width.

        An undefined score is an empty cell, the UF of the noisy input is ``noisy``, and that of a budget its average.
        """
        with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "uf", "budget", "macs_per_sample", *self.metrics))
            for row in self.files:
                values = (row.scores.values[name] for name in self.metrics)
                average, macs = self.cost(row.uf, self.shares([row]))
                uf = "noisy" if average is None else average
                cells = (row.file, uf, budget_of(row.uf), macs)
                scores = ("" if math.isnan(value) else value for value in values)
                writer.writerow("" if cell is None else cell for cell in (*cells, *scores))

    def to_dict(self) -> dict[str, Any]:
        """Means and scores per file as plain values, for JSON; null where a score is undefined, and as the noisy UF."""
        return {
            "metrics": list(self.metrics),
            "file_count": len(self.files) // len(self.ufs),
            "failures": [asdict(failure) for failure in self.failures],
            "means": [
                {
                    "uf": row.average_uf,
                    "budget": budget_of(row.uf),
                    "shares": row.shares,
                    "macs_per_sample": row.macs_per_sample,
                    **_plain(row.values),
                    "intervals": {n: (i.low, i.high) for n, i in row.intervals.items() if not math.isnan(i.mean)},
                    "excluded": row.excluded,
                }
                for row in self.means()
            ],
            "files": [
                {
                    "file": row.file,
                    "uf": self.cost(row.uf, self.shares([row]))[0],
                    "budget": budget_of(row.uf),
                    **_plain(row.scores.values),
                    "excluded": row.scores.excluded,
                }
                for row in self.files
            ],
        }

    def write_json(self, path: Path, **about: Any) -> None:
        """Write `to_dict`, the versions of the packages behind the figures, and ``about`` into one JSON file."""
        content = {**about, "versions": versions(), **self.to_dict()}
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        with written_whole(path) as part:
            part.write_text(text, encoding="utf-8")


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def budget_of(uf: Width) -> float | None:
    """The budget, or None for what has none."""
    return uf.budget if isinstance(uf, Dynamic) else None


def label(uf: Width) -> str:
    """``noisy``, the UF, or the budget."""
    if isinstance(uf, Dynamic):
        return f"budget {uf.budget:g}"
    return "noisy" if uf is None else f"UF {uf:g}"


def versions() -> dict[str, str | None]:
    """Versions of Python, SlimSE and the packages that the figures depend on; None for one that is not installed."""
    found: dict[str, str | None] = {"slimse": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
