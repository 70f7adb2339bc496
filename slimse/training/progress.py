"""What a run says while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from torch import Tensor

from .module import SlimmableTraining

_SECONDS_PER_LINE = 15.0
_OTHERS_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
_OTHERS_LINES = (
    *("GPU available", "TPU available", "HPU available", "💡 Tip", "LOCAL_RANK", "Using bfloat16", "Using 16bit"),
    *("`Trainer.fit` stopped", "`Trainer.fit`", "Restoring states", "Restored all states", "Initializing distributed"),
    *("-----", "distributed_backend=", "All distributed processes", "Starting with 1 processes", "Starting with "),
)
_OTHERS_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",
    r".*Checkpoint directory .* exists and is not empty",
    r".*does not have many workers",
    r".*have no `val_dataloader`",
    r".*smaller than the logging interval",
    r".*Found .* module\(s\) in eval mode",
    r".*resuming from a checkpoint that ended before the epoch",
    r".*Please use the new API settings to control TF32",
)
"""What Lightning and PyTorch say of themselves, which a user can do nothing about. All other warnings are shown."""


@contextmanager
def others_quiet() -> Iterator[None]:
    """Keep the advertisements and known warnings of other packages off the terminal, and nothing else."""

    def ours(record: logging.LogRecord) -> bool:
        return not record.getMessage().strip().startswith(_OTHERS_LINES)

    loggers = [logging.getLogger(name) for name in _OTHERS_LOGGERS]
    for logger in loggers:
        logger.addFilter(ours)
    try:
        with warnings.catch_warnings():
            for message in _OTHERS_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(ours)


class ProgressReport(Callback):
    """Say how far a run is: step, loss, seconds of sound per second, and time left; and the scores of validations.

    On a terminal that is a bar, elsewhere a line every `_SECONDS_PER_LINE` on standard error. The loss is the mean of
    the steps since the last line.

    Args:
        end: time of `time.monotonic` at which the run ends, or None where it ends with the steps of its recipe.
    """

    def __init__(self, end: float | None = None) -> None:
        self._end = end
        self._console = Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._first = self._step = 0
        self._started = self._said = 0.0
        self._loss: Tensor | None = None

    def say(self, line: str) -> None:
        """Print a line."""
        (self._console if self._bar is None else self._bar.console).print(line, markup=False)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._first = self._step = trainer.global_step
        self._started = self._said = monotonic()
        if not trainer.is_global_zero:
            return
        if self._first:
            self.say(f"going on from step {self._first:,}")
        if self._console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("step 0", total=1)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss of a step, and say how far the run is if it is time to."""
        loss = (outputs["loss"] if isinstance(outputs, Mapping) else outputs).detach()
        # Summed where it is: to read it would make a GPU wait.
        self._loss = loss if self._loss is None else self._loss + loss
        now, step = monotonic(), trainer.global_step
        assert isinstance(pl_module, SlimmableTraining)
        last = self._end is None and step >= pl_module.config.steps
        due = now - self._said >= (0.5 if self._bar is not None else _SECONDS_PER_LINE)
        if trainer.is_global_zero and (due or last or step == self._first + 1):
            self._report(trainer, pl_module, now, step)

    def _report(self, trainer: lightning.Trainer, module: SlimmableTraining, now: float, step: int) -> None:
        config, done = module.config, step - self._first
        assert self._loss is not None
        loss = float(self._loss) / (step - self._step)
        sound = done * config.batch * config.seconds * trainer.world_size / (now - self._started)
        left = (config.steps - step) * (now - self._started) / done if self._end is None else self._end - now
        of = f" of {config.steps:,}" if self._end is None else ""
        text = f"step {step:,}{of}  loss {loss:.4f}  {sound:.1f} s of sound per s  {_clock(left)} left"
        if self._bar is None:
            self.say(text)
        else:
            share = step / config.steps if self._end is None else (now - self._started) / (self._end - self._started)
            self._bar.update(self._task, description=text, completed=min(share, 1.0))
        self._said, self._step, self._loss = now, step, None

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say what a validation found."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("valid/")}
        if trainer.is_global_zero and found:
            self.say(f"step {trainer.global_step:,}: {scores_in_words(found)}")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away before an error is shown."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def scores_in_words(scores: Mapping[str, float]) -> str:
    """The values that a validation logs, on one line."""
    parts = []
    for name, value in scores.items():
        kind, which = name.removeprefix("valid/").split("/")
        if kind == "si_sdr":
            parts.append(f"{which if which == 'router' else f'UF {which}'} {value:.2f} dB")
        elif kind == "uf":
            parts.append(f"average UF {value:.3f} at budget {which}")
    return f"validation SI-SDR: {', '.join(sorted(parts, key=_router_last))}"


def _router_last(part: str) -> tuple[bool, bool]:
    return "average" in part, "router" in part


def _clock(seconds: float) -> str:
    whole = max(round(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def mean_scores(module: SlimmableTraining, pairs: Any) -> dict[str, float]:
    """What `SlimmableTraining.scores` gives for pairs of signals ``[1, samples]``, averaged; {} for none.

    Args:
        module: runs on its device, in evaluation mode.
        pairs: noisy and clean, one after the other.
    """
    module.eval()
    found: list[dict[str, float]] = []
    with torch.no_grad():
        for noisy, clean in (pairs[index] for index in range(len(pairs))):
            batch = noisy[None].to(module.device), clean[None].to(module.device)
            found.append({name: float(value) for name, value in module.scores(batch).items()})
    return {name: sum(row[name] for row in found) / len(found) for name in (found[0] if found else {})}
