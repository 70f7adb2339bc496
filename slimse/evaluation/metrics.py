"""Objective scores of speech at 16 kHz, each from the package that is customary for it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Hz. Wide-band PESQ and DNSMOS are defined at this rate."""

SILENCE = 1e-6
"""Peak below which a signal counts as silent: 1/30 of a step of 16 bits. PESQ and SI-SDR divide by its power."""

Signal = NDArray[np.float32]


@dataclass(frozen=True)
class Metric:
    """How a score is shown, and what computes it. Of every one, more is better."""

    title: str
    digits: int
    """Digits after the point in tables."""
    modules: tuple[str, ...]
    """What has to be importable."""
    meaning: str
    """What it says, for readers who do not know it: a sentence after its title."""
    needs_clean: bool = True
    """Whether it compares with the clean signal."""
    install: str = "'slimse[train]'"
    """What to give to pip for it."""
    heading: str = ""
    """Short title, for columns of tables; empty where the title is short."""


# speechmos imports these without declaring them.
_DNSMOS = ("speechmos", "onnxruntime", "librosa", "requests")

METRICS: dict[str, Metric] = {
    "pesq": Metric(
        "PESQ-WB",
        2,
        ("pesq",),
        "estimates the quality that listeners hear, from 1 (bad) to 4.6 (as the clean speech), by ITU-T P.862.2.",
        heading="PESQ",
    ),
    "stoi": Metric("STOI", 3, ("pystoi",), "estimates how well the words can be understood, from 0 to 1."),
    "estoi": Metric("ESTOI", 3, ("pystoi",), "is STOI made for noise that comes and goes, from 0 to 1."),
    "si_sdr": Metric(
        "SI-SDR, dB",
        1,
        ("torchmetrics",),
        "is how far the speech stands above everything else that is heard, in decibels, however loud the file is.",
        heading="SI-SDR",
    ),
    "p808": Metric(
        "P.808",
        2,
        _DNSMOS,
        "is what listeners would answer from 1 to 5, as a network (DNSMOS) estimates without the clean speech.",
        needs_clean=False,
    ),
    "ovrl": Metric(
        "OVRL",
        2,
        _DNSMOS,
        "is the overall impression of speech and background from 1 to 5, as DNSMOS P.835 estimates it.",
        needs_clean=False,
    ),
    "distillmos": Metric(
        "DistillMOS",
        2,
        ("distillmos", "xls_r_sqa"),
        "is what listeners would answer from 1 to 5, as a network estimates. No weights here were trained against it.",
        needs_clean=False,
        # Their torchaudio and transformers are for other uses, and would ask for a torch of their own.
        install="--no-deps distillmos xls-r-sqa",
        heading="DMOS",
    ),
}
"""All scores by name.

- PESQ is wide-band (P.862.2, MOS-LQO) of the package ``pesq``: at 16 kHz, over a file as a whole, mean over files.
- STOI, and its extended form.
- SI-SDR is of zero-mean signals (arXiv 1811.02508): in dB per file, over a file as a whole, mean of the dB.
- The DNSMOS estimates (P.808 overall; P.835 overall, OVRL) hear the estimate alone, at the level it has.
- DistillMOS (arXiv 2502.05356) hears the estimate alone, too, whatever its level. The DNSMOS networks can be trained
  against; then this one is the judge. It is not among the default ones.
"""

DEFAULT_METRICS = tuple(name for name in METRICS if name != "distillmos")


class _UnscorableError(ValueError):
    """A score that is not defined for these signals; the message says why."""


@dataclass(frozen=True)
class Scores:
    """Scores of one signal."""

    values: dict[str, float]
    """By name of the metric; NaN where it is not defined."""
    excluded: dict[str, str] = field(default_factory=dict)
    """Why, for every NaN."""


def check_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Return ``names`` without repetitions, in the order of `METRICS`, after making sure that all can be computed.

    Raises:
        ValueError: for an unknown name, or none at all.
        ModuleNotFoundError: if an optional package is missing; the message says what to install.
    """
    wanted = set(names)
    unknown = sorted(wanted - METRICS.keys())
    if unknown or not wanted:
        raise ValueError(f"metrics = {unknown}: expected one or more of {list(METRICS)}")
    chosen = tuple(name for name in METRICS if name in wanted)
    for name in chosen:
        missing = [module for module in METRICS[name].modules if importlib.util.find_spec(module) is None]
        if missing:
            raise ModuleNotFoundError(
                f"{METRICS[name].title} needs {' and '.join(missing)}: pip install {METRICS[name].install} "
                f"(or leave {name} out of the metrics)",
                name=missing[0],
            )
    return chosen


def score(estimate: Signal, clean: Signal | None, names: Iterable[str]) -> Scores:
    """Compute several scores of one signal.

    Args:
        estimate: ``[n]``, the noisy or enhanced signal at 16 kHz, aligned with ``clean``.
        clean: ``[n]``, the target; None if no metric of ``names`` compares with it.
        names: keys of `METRICS`.

    Returns:
        One value per name. A score that these signals do not have (PESQ without an utterance, STOI of a tenth of
        a second) is NaN, and the reason stands beside it.

    Raises:
        ValueError: for signals that are not one-dimensional, finite and of one length.
    """
    names = tuple(names)
    _check_signals(estimate, clean, names)
    values, excluded = {}, {}
    dnsmos: dict[str, float] | None = None
    for name in names:
        try:
            if METRICS[name].needs_clean:
                assert clean is not None
                values[name] = _COMPARING[name](estimate, clean)
            elif name == "distillmos":
                values[name] = _distillmos(estimate)
            else:
                dnsmos = _dnsmos(estimate) if dnsmos is None else dnsmos
                values[name] = dnsmos[f"{name}_mos"]
        except _UnscorableError as error:
            values[name], excluded[name] = float("nan"), str(error)
    return Scores(values, excluded)


def _check_signals(estimate: Signal, clean: Signal | None, names: tuple[str, ...]) -> None:
    if estimate.ndim != 1 or not estimate.size or not np.isfinite(estimate).all():
        raise ValueError(f"estimate has shape {estimate.shape}: expected [n] finite samples, 1 or more")
    if clean is None:
        comparing = [name for name in names if METRICS[name].needs_clean]
        if comparing:
            raise ValueError(f"clean = None: expected the clean signal for {comparing}")
    elif clean.shape != estimate.shape or not np.isfinite(clean).all():
        raise ValueError(f"clean has shape {clean.shape}: expected finite samples {estimate.shape}, as the estimate")


def _refuse_silence(**signals: Signal) -> None:
    for name, signal in signals.items():
        if np.abs(signal).max() < SILENCE:
            raise _UnscorableError(f"the {name} signal is silent")


def _pesq(estimate: Signal, clean: Signal) -> float:
    pesq = importlib.import_module("pesq")
    _refuse_silence(estimate=estimate, clean=clean)
    try:
        return float(pesq.pesq(SAMPLE_RATE, clean, estimate, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise _UnscorableError(reason.decode() if isinstance(reason, bytes) else str(reason)) from error


def _stoi(estimate: Signal, clean: Signal, *, extended: bool = False) -> float:
    _refuse_silence(clean=clean)
    with warnings.catch_warnings():
        # pystoi gives 0.00001 and a warning where it has too few frames; such a figure must not enter a mean.
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(importlib.import_module("pystoi").stoi(clean, estimate, SAMPLE_RATE, extended=extended))
        except RuntimeWarning as warning:
            raise _UnscorableError("less than 0.4 s of speech") from warning


def _estoi(estimate: Signal, clean: Signal) -> float:
    return _stoi(estimate, clean, extended=True)


def _si_sdr(estimate: Signal, clean: Signal) -> float:
    _refuse_silence(clean=clean)
    audio = importlib.import_module("torchmetrics.functional.audio")
    pair = torch.from_numpy(np.stack([estimate, clean])).double()
    return float(audio.scale_invariant_signal_distortion_ratio(pair[0], pair[1], zero_mean=True))


_COMPARING: dict[str, Callable[[Signal, Signal], float]] = {
    "pesq": _pesq,
    "stoi": _stoi,
    "estoi": _estoi,
    "si_sdr": _si_sdr,
}


@cache
def _dnsmos_model() -> Any:
    """Load the two DNSMOS networks, on one thread each; files are scored in parallel, not their operations."""
    module = importlib.import_module("speechmos.dnsmos")
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    folder = resources.files("speechmos") / "dnsmos_models"
    overall, p808 = str(folder / "sig_bak_ovr.onnx"), str(folder / "model_v8.onnx")
    model = module.DNSMOS(overall, p808)
    model.onnx_sess = onnxruntime.InferenceSession(overall, options, providers=["CPUExecutionProvider"])
    model.p808_onnx_sess = onnxruntime.InferenceSession(p808, options, providers=["CPUExecutionProvider"])
    return model


def _dnsmos(estimate: Signal) -> dict[str, float]:
    """``p808_mos``, ``ovrl_mos`` and others, of the estimate as a sound card would play it: clipped at full scale."""
    result = _dnsmos_model()(np.clip(estimate, -1, 1), SAMPLE_RATE, False)
    return {name: float(value) for name, value in result.items()}


@cache
def _distillmos_model() -> torch.nn.Module:
    # It imports torchaudio, of another torch perhaps, for its command line alone: an empty module will do.
    absent = "torchaudio" not in sys.modules
    if absent:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model: torch.nn.Module = importlib.import_module("distillmos").ConvTransformerSQAModel()
    finally:
        if absent:
            del sys.modules["torchaudio"]
    return model.eval().requires_grad_(False)


def _distillmos(estimate: Signal) -> float:
    _refuse_silence(estimate=estimate)
    return float(_distillmos_model()(torch.from_numpy(estimate)[None]))
