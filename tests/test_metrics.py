"""The scores of `slimse.evaluation`: their values, what they refuse, and what they exclude."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speech import noisy_of, speech_like

from slimse.evaluation import DEFAULT_METRICS, METRICS, check_metrics, interval, score
from slimse.evaluation import metrics as metrics_module

MIXED = Path(__file__).parents[1].parent / "shared" / "data" / "valid" / "mixed"
REAL = "028_3005_snr+10.flac"

has = {name: all(importlib.util.find_spec(m) for m in metric.modules) for name, metric in METRICS.items()}
pytestmark = pytest.mark.skipif(
    not all(has[name] for name in DEFAULT_METRICS), reason="needs the packages of the train extra"
)
real = pytest.mark.skipif(not MIXED.is_dir(), reason=f"needs the validation mixtures in {MIXED}")


def test_clean_against_itself_is_the_best_score() -> None:
    clean = speech_like()
    values = score(clean, clean, ("pesq", "stoi", "estoi", "si_sdr")).values
    assert values["pesq"] == pytest.approx(4.644, abs=0.001)
    assert values["stoi"] == pytest.approx(1, abs=1e-4)
    assert values["estoi"] == pytest.approx(1, abs=1e-4)
    assert values["si_sdr"] > 100


@pytest.mark.parametrize("name", ["stoi", "estoi", "si_sdr"])
def test_more_noise_scores_worse(name: str) -> None:
    clean = speech_like()
    values = [score(noisy_of(clean, level), clean, [name]).values[name] for level in (0.001, 0.01, 0.05)]
    assert values[0] > values[1] > values[2]


def test_si_sdr_is_the_ratio_of_powers_and_ignores_scale_and_offset() -> None:
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 160_000)).astype(np.float32)
    noisy = clean + 0.1 * noise
    value = score(noisy, clean, ["si_sdr"]).values["si_sdr"]
    assert value == pytest.approx(20, abs=0.1)
    assert score(3 * noisy + 5, clean, ["si_sdr"]).values["si_sdr"] == pytest.approx(value, abs=1e-3)


@real
def test_real_mixture_scores_as_computed_by_the_packages_themselves() -> None:
    pesq, pystoi = pytest.importorskip("pesq"), pytest.importorskip("pystoi")
    dnsmos = pytest.importorskip("speechmos.dnsmos")
    noisy, clean = (soundfile.read(MIXED / kind / REAL, dtype="float32")[0] for kind in ("noisy", "clean"))
    values = score(noisy, clean, DEFAULT_METRICS).values
    assert values["pesq"] == pytest.approx(pesq.pesq(16_000, clean, noisy, "wb"), abs=1e-6)
    assert values["stoi"] == pytest.approx(pystoi.stoi(clean, noisy, 16_000), abs=1e-6)
    assert values["estoi"] == pytest.approx(pystoi.stoi(clean, noisy, 16_000, extended=True), abs=1e-4)
    better = score(0.5 * (noisy + clean), clean, ("pesq", "estoi")).values
    assert 4.64 > better["pesq"] > values["pesq"] + 0.1 and better["estoi"] > values["estoi"]
    expected = dnsmos.run(noisy, 16_000)
    assert values["p808"] == pytest.approx(expected["p808_mos"], abs=1e-3)
    assert values["ovrl"] == pytest.approx(expected["ovrl_mos"], abs=1e-3)


def test_undefined_scores_are_nan_with_a_reason() -> None:
    clean, silence = speech_like(), np.zeros(24_000, np.float32)
    scores = score(noisy_of(silence), silence, ("pesq", "stoi", "si_sdr"))
    assert all(math.isnan(value) for value in scores.values.values())
    assert scores.excluded == dict.fromkeys(("pesq", "stoi", "si_sdr"), "the clean signal is silent")
    assert score(silence, clean, ["pesq"]).excluded == {"pesq": "the estimate signal is silent"}
    # A model that silences everything must not get away without a score where one is defined.
    assert score(silence, clean, ["stoi", "si_sdr"]).excluded == {}
    short = speech_like(0.2)
    assert set(score(short, short, ("pesq", "stoi")).excluded) == {"pesq", "stoi"}


def test_errors_of_pesq_itself_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "SILENCE", 0.0)
    scores = score(speech_like(), np.zeros(24_000, np.float32), ["pesq"])
    assert scores.excluded == {"pesq": "No utterances detected"}


def test_wrong_signals_raise() -> None:
    clean = speech_like(0.5)
    with pytest.raises(ValueError, match=r"clean has shape \(7999,\).*\(8000,\)"):
        score(clean, clean[:-1], ["si_sdr"])
    with pytest.raises(ValueError, match="estimate has shape"):
        score(np.full(100, np.nan, np.float32), clean[:100], ["si_sdr"])
    with pytest.raises(ValueError, match="clean = None"):
        score(clean, None, ["si_sdr"])


def test_metric_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_metrics(["ovrl", "pesq", "pesq"]) == ("pesq", "ovrl")
    with pytest.raises(ValueError, match="metrics = \\['wer'\\]: expected one or more of"):
        check_metrics(["pesq", "wer"])
    with pytest.raises(ValueError, match="expected one or more of"):
        check_metrics([])
    monkeypatch.setattr(metrics_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pystoi: pip install 'slimse\[train\]'"):
        check_metrics(["stoi"])


@real
@pytest.mark.skipif(not has["distillmos"], reason="needs distillmos and xls-r-sqa")
def test_distillmos_hears_noise_at_any_level() -> None:
    noisy, clean = (soundfile.read(MIXED / kind / REAL, dtype="float32")[0] for kind in ("noisy", "clean"))
    values = [score(x, None, ["distillmos"]).values["distillmos"] for x in (clean, noisy, 0.1 * noisy)]
    assert 1 <= values[1] < values[0] <= 5
    assert values[2] == pytest.approx(values[1], abs=0.01)
    # What stands in for a package that is missing must not be taken for it elsewhere.
    assert sys.modules.get("torchaudio") is None or sys.modules["torchaudio"].__spec__ is not None


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(3, 2, 50)) for _ in range(200)]
    assert 0.9 <= np.mean([low <= 3 <= high for _, low, high in found]) <= 0.98
    assert np.mean([i.half_width for i in found]) == pytest.approx(1.96 * 2 / 50**0.5, rel=0.05)
    assert interval([1.0, math.nan, 3.0]).mean == 2
    assert math.isnan(interval([math.nan]).low)
