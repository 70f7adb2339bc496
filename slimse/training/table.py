"""The log of a run as one table, however often the run was interrupted."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TableLogger(Logger):
    """Write one row per logged step into a CSV file; steps that a resumed run repeats replace their rows.

    Args:
        path: of the file.
        resume: go on with what it holds; else it starts anew.

    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        super().__init__()
        self._path = path
        self._rows: dict[int, dict[str, Any]] = {}
        if resume and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = {int(row["step"]): row for row in csv.DictReader(file)}

    @property
    def name(self) -> None:
        """None: the file has a name of its own."""

    @property
    def version(self) -> None:
        """None, for the same reason."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the weights hold the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add values to the row of a step."""
        if step is not None:
            self._rows.setdefault(step, {"step": step}).update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew: whole or, if the run is killed here, not at all."""
        if not self._rows:
            return
        # In the order in which they first appear, which one run and another share.
        names = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        temporary = self._path.with_name(f".{self._path.name}.part")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self._rows[step] for step in sorted(self._rows))
        os.replace(temporary, self._path)
