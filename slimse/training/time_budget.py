"""Training for a given time: as many steps as fit."""

from __future__ import annotations

from time import monotonic

import lightning
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import LambdaLR

from .data import TrainingData
from .module import SlimmableTraining, rate_factor


class TimeBudget(Callback):
    """Fits the steps of a run to the time there is.

    After a first part of `FIRST` steps, and after every later one, it sets the steps of the run to those that have been
    done and those that the time left allows at the pace so far, so that the learning rate's tail ends with the time.
    Parts, which end with a validation and a checkpoint, are made a minute long.

    Args:
        data: whose parts are set.
        seconds: until all is to be done.
    """

    FIRST = 40
    RESERVE = 0.04
    """Share of the time that is kept back for the end: the last checkpoint, weights and calibration."""

    def __init__(self, data: TrainingData, seconds: float) -> None:
        self.data, self.end = data, monotonic() + seconds
        self._begun = self._reserve = 0.0
        self._step = 0
        data.config = data.config.override(val_interval=min(self.FIRST, data.config.val_interval))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock of the first part."""
        self._begun, self._step = monotonic(), trainer.global_step
        self._reserve = self.RESERVE * (self.end - self._begun)
        # No tail before the pace is known, wherever a run that goes on has got to.
        self._set_steps(trainer, pl_module, 100 * (self._step + self.FIRST))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Stop in the middle of a part that turns out to take longer than the last one."""
        trainer.should_stop = trainer.should_stop or monotonic() > self.end - self._reserve

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fit the steps of the run, and the length of the next part, to the pace of the last one."""
        now, step = monotonic(), trainer.global_step
        pace = (now - self._begun) / max(step - self._step, 1)
        left = int((self.end - self._reserve - now) / pace)
        # The first steps compile, so what they promise is a lower bound.
        self._begun, self._step = now, step
        every = min(max(round(60 / pace), 1), max(left, 1))
        self.data.config = self.data.config.override(val_interval=every)
        self._set_steps(trainer, pl_module, step + max(left, 1))
        trainer.should_stop = trainer.should_stop or left < 1

    @staticmethod
    def _set_steps(trainer: lightning.Trainer, module: lightning.LightningModule, steps: int) -> None:
        assert isinstance(module, SlimmableTraining)
        module.config = module.config.override(steps=steps)
        for found in trainer.lr_scheduler_configs:
            assert isinstance(found.scheduler, LambdaLR)
            found.scheduler.lr_lambdas = [rate_factor(module.config)] * len(found.scheduler.lr_lambdas)
