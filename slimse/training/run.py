"""A run: from a recipe and folders of sound to weights, in one go or in several."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from time import monotonic
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from ..checkpoint import load, save
from ..model import SlimModel
from ..ops import check_backend
from ..router import RouterConfig
from .config import TrainConfig
from .data import TrainingData
from .module import SlimmableTraining
from .optimizer import multiplies_bf16
from .progress import ProgressReport, mean_scores, others_quiet, scores_in_words
from .routing import calibrate, measured
from .table import TableLogger
from .time_budget import TimeBudget

DEVICES = ("auto", "cpu", "cuda")
_CALIBRATION_ITEMS = 240
_CHECKPOINT = "last.ckpt"


def prepare(config: TrainConfig, initial: SlimModel | None = None) -> SlimModel:
    """The model that a run starts from: given, or as the recipe says, with a fresh router where one is needed."""
    if initial is None and not config.init:
        initial = SlimModel(config.model)
    model = initial or load(config.init)
    if not config.routed:
        return model
    if model.router is None:
        bare = model
        model = SlimModel(replace(bare.config, router=RouterConfig()))
        model.load_state_dict({**model.state_dict(), **bare.state_dict()})
    assert model.router is not None
    # Training asks for what it wants, and the calibration belongs to the end of it.
    model.router.calibrated_budgets.copy_(model.router.budgets)
    return model


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    valid: Path | None = None,
    initial: SlimModel | None = None,
    progress: bool = True,
    devices: int | str = "auto",
    nodes: int = 1,
    device: str = "auto",
    minutes: float | None = None,
    backend: str = "auto",
) -> Path:
    """Run a recipe, or go on with it where ``out`` holds a checkpoint of it.

    Args:
        config: of the run.
        data: folder with ``speech``, ``noise`` and, if there are any, ``rir``.
        out: folder for ``last.ckpt``, the log ``metrics.csv``, and the averaged weights ``model.safetensors``.
        valid: folder with ``noisy`` and ``clean`` pairs to watch, or None.
        initial: weights to start from (fine-tuning); ignored on resuming.
        progress: say how far the run is, see `ProgressReport`.
        devices: processes per machine, one per GPU or so many on the CPU; several train in step (DDP).
        nodes: machines, each of which runs this, as started by ``torchrun``.
        device: ``"auto"``, ``"cuda"`` or ``"cpu"``. On a GPU, and where one of the last two is given, mixing runs on
            the device, too; else the loader's processes mix.
        minutes: how long this part of the run may take, what comes before and after the steps included. The learning
            rate falls to zero at its end, wherever the recipe's steps would have ended, and there is a checkpoint for
            every minute (see `TimeBudget`).
        backend: what runs the layers, see `slimse.ops`.

    Returns:
        The path of the weights.

    Raises:
        ValueError: for an unknown device or backend, no time at all, or a checkpoint in ``out`` of another run.
    """
    started = monotonic()
    if device not in DEVICES:
        raise ValueError(f"device = {device!r}: expected one of {DEVICES}")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes = {minutes}: expected more than 0")
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    check_backend(backend, "ieee")
    model = prepare(config, initial)
    for layer in model.modules():
        if backend != "auto" and hasattr(layer, "backend"):
            setattr(layer, "backend", backend)  # noqa: B010 - modules type what is assigned
    module = SlimmableTraining(config, model)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / _CHECKPOINT
    if checkpoint.exists():
        check_checkpoint(checkpoint, module)
    # One file, replaced after every `config.val_interval` steps.
    last = ModelCheckpoint(dirpath=out, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    callbacks: list[Callback] = [EMAWeightAveraging(decay=config.ema_decay), last, LearningRateMonitor("step")]
    end = None if minutes is None else started + 60 * minutes
    report = ProgressReport(end)
    if progress:
        callbacks.append(report)
    mix_on_device = device != "auto" or torch.cuda.is_available()
    source = TrainingData(data, valid, config, model.sample_rate, mix_on_device)
    if config.stage == "router":
        if progress:
            report.say(f"running {config.measured} mixtures at every width")
        items = source.items(0, config.measured, config.seed, config.seconds)
        where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        source.measured = measured(model, module.loss, items, config.measured, where)
    if end is not None:
        # Before the checkpoint, which is to see what it decided.
        callbacks.insert(0, TimeBudget(source, end - monotonic()))
    machines: dict[str, Any] = {"accelerator": device, "devices": devices, "num_nodes": nodes}
    with others_quiet():
        trainer = _trainer(config, out, callbacks, max_steps=config.steps if minutes is None else -1, **machines)
        resumed = os.fspath(checkpoint) if checkpoint.exists() else None
        # Nothing in a checkpoint may run code.
        trainer.fit(module, datamodule=source, ckpt_path=resumed, weights_only=True)
    weights = out / "model.safetensors"
    if trainer.is_global_zero:
        _finish(module, source, weights, report.say if progress else lambda line: None)
    return weights


def _trainer(config: TrainConfig, out: Path, callbacks: list[Callback], **options: Any) -> lightning.Trainer:
    """Lightning's trainer of a run, with ``options`` of its own."""
    return lightning.Trainer(
        default_root_dir=out,
        max_epochs=-1,
        precision=_precision(config.precision),  # type: ignore[arg-type]
        gradient_clip_val=config.grad_clip_norm,
        callbacks=callbacks,
        logger=_loggers(out, resume=(out / _CHECKPOINT).exists()),
        log_every_n_steps=min(25, config.val_interval),
        reload_dataloaders_every_n_epochs=1,
        # The data module gives every process its own items.
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _finish(module: SlimmableTraining, source: TrainingData, weights: Path, say: Callable[[str], None]) -> None:
    """Calibrate the router, validate, and save. At the end of `fit` Lightning has put the averaged weights in place."""
    config, model = module.config, module.cpu().model
    if config.routed:
        say("calibrating the router")
        # Longer than segments of training: routers need a second to know a noise, and most sound is longer.
        items = source.items(0, _CALIBRATION_ITEMS, config.seed + 1, 2 * config.seconds)
        calibrate(model, torch.stack([items[index][0] for index in range(_CALIBRATION_ITEMS)]))
    scores = {} if source.watched is None else mean_scores(module, source.watched)
    if scores:
        say(f"final {scores_in_words(scores)}")
    save(model, weights, notes={"training": config.to_dict(), "validation": scores})


def check_checkpoint(path: Path, module: SlimmableTraining) -> None:
    """Make sure that a checkpoint is of the run that is to go on.

    Raises:
        ValueError: if it is damaged, or of another stage or network; the message names both.
    """
    advice = "give another --out, or the recipe that it was made with"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights, stage = found["state_dict"], found.get("stage", module.config.stage)
    except (RuntimeError, UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint of a run: {advice}") from error
    if stage != module.config.stage:
        raise ValueError(f"{path} is of stage {stage!r}, the recipe of {module.config.stage!r}: {advice}")
    expected = module.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        shapes = [tuple(each[name].shape) if name in each else None for each in (weights, expected)]
        if shapes[0] != shapes[1]:
            there, here = ("absent" if shape is None else str(list(shape)) for shape in shapes)
            raise ValueError(f"{path} does not fit the recipe: {name} is {there} in it, expected {here}: {advice}")


def _precision(precision: str) -> str:
    if precision != "auto":
        return precision
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16-mixed" if multiplies_bf16(device) else "32-true"


def _loggers(out: Path, *, resume: bool) -> list[Logger]:
    """A table always, and TensorBoard's files where it is installed; one of each for all parts of a run."""
    loggers: list[Logger] = [TableLogger(out / "metrics.csv", resume=resume)]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(out, name="tensorboard", version=""))
    return loggers
