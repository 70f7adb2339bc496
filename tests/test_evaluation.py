"""`slimse.evaluation` and ``slimse evaluate``: pairing, aggregation, comparisons, files written."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from causal_conv import ConvConfig
from speech import noisy_of, speech_like
from typer.testing import CliRunner

from slimse import SlimModel
from slimse.audio.files import read_mono
from slimse.checkpoint import save
from slimse.cli import app
from slimse.evaluation import (
    DEFAULT_METRICS,
    METRICS,
    Dynamic,
    FileScores,
    Report,
    evaluate_pairs,
    find_pairs,
    score,
)
from slimse.evaluation.metrics import Scores
from slimse.evaluation.routing import sentences, summarise
from slimse.profiling import profile
from slimse.testing import tiny_model

FAST = ("stoi", "si_sdr")
"""Scores for the tests of everything around the scores."""

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for name in DEFAULT_METRICS for m in METRICS[name].modules),
    reason="needs the packages of the train extra",
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two pairs, one in a sub-folder and with another suffix."""
    noisy, clean = tmp_path / "noisy", tmp_path / "clean"
    for index, (name, suffix) in enumerate((("b", ".wav"), ("sub/a.1", ".flac"))):
        signal = speech_like(seed=index)
        for folder, audio, end in ((noisy, noisy_of(signal), suffix), (clean, signal, ".wav")):
            path = folder / f"{name}{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, audio, 16_000)
    (noisy / "list.csv").write_text("not audio")
    (clean / "._b.wav").write_text("not audio either")
    return noisy, clean


@pytest.fixture(scope="module", params=["demucs", "conv"])
def model(request: pytest.FixtureRequest) -> SlimModel:
    torch.manual_seed(0)
    return tiny_model({"demucs": "small", "conv": ConvConfig()}[request.param])


@pytest.mark.parametrize("network", ["small", ConvConfig()], ids=["demucs", "conv"])
def test_a_budget_is_scored_at_what_it_used(
    network: str | ConvConfig, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model = tiny_model(network, router=True)
    pairs = find_pairs(*folders)
    report = evaluate_pairs(pairs, model, ufs=[0.25], budgets=[0.2, 0.7], metrics=["si_sdr"], jobs=1)
    assert report.ufs == (None, 0.25, Dynamic(0.2), Dynamic(0.7))
    costs = profile(model)
    for row, budget in zip(report.means()[2:], (0.2, 0.7), strict=True):
        chosen = torch.cat(
            [model.route(torch.from_numpy(read_mono(pair.noisy, 16_000))[None, None], budget)[0] for pair in pairs]
        )
        assert row.average_uf == pytest.approx(float(chosen.mean()))
        assert row.macs_per_sample == pytest.approx(costs.macs_per_sample(chosen))
        assert sum(row.shares) == pytest.approx(1)
    report.write_csv(tmp_path / "files.csv")
    rows = list(csv.DictReader((tmp_path / "files.csv").read_text().splitlines()))
    assert [row["budget"] for row in rows[:4]] == ["", "", "0.2", "0.7"]
    assert len(set(report.means()[2].shares)) > 1
    report.write_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["means"][3]["budget"] == 0.7
    with pytest.raises(ValueError, match="no router"):
        evaluate_pairs(pairs, SlimModel("small"), budgets=[0.2], metrics=["si_sdr"], jobs=1)


def test_pairs_match_by_relative_path_whatever_the_suffix(folders: tuple[Path, Path]) -> None:
    pairs = find_pairs(*folders)
    assert [pair.name for pair in pairs] == ["b", "sub/a.1"]
    assert pairs[1].noisy == folders[0] / "sub" / "a.1.flac"
    assert pairs[1].clean == folders[1] / "sub" / "a.1.wav"


def test_pairs_that_do_not_match_raise(folders: tuple[Path, Path], tmp_path: Path) -> None:
    noisy, clean = folders
    (clean / "b.wav").rename(clean / "c.wav")
    with pytest.raises(ValueError, match=r"noisy/b\.wav.*clean/c\.wav.*no file of the same name"):
        find_pairs(noisy, clean)
    (noisy / "sub" / "a.1.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="differ in their suffix alone"):
        find_pairs(noisy, clean)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no audio files"):
        find_pairs(tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(ValueError, match="is not a folder"):
        find_pairs(tmp_path / "none", clean)


def test_report_has_the_noisy_input_and_every_uf(folders: tuple[Path, Path], model: SlimModel) -> None:
    pairs = find_pairs(*folders)
    done: list[int] = []
    report = evaluate_pairs(pairs, model, metrics=FAST, jobs=1, progress=done.append)
    assert done == [1, 2]
    assert [(row.file, row.uf) for row in report.files] == [
        (pair.name, uf) for pair in pairs for uf in (None, 0.125, 0.25, 0.5, 1.0)
    ]
    noisy, clean = (torch.from_numpy(soundfile.read(p, dtype="float32")[0]) for p in (pairs[1].noisy, pairs[1].clean))
    enhanced = model(noisy[None, None], 0.25)[0, 0]
    expected = score(enhanced.numpy(), clean.numpy(), FAST).values
    assert report.files[7].scores.values == pytest.approx(expected, abs=1e-3)
    means = report.means()
    assert [row.uf for row in means] == [None, 0.125, 0.25, 0.5, 1.0]
    assert [row.macs_per_sample for row in means] == [None, *(w.macs_per_sample for w in profile(model).widths)]
    assert means[2].values["stoi"] == pytest.approx(
        np.mean([row.scores.values["stoi"] for row in report.files if row.uf == 0.25])
    )
    assert report.notes() == []


def test_excluded_files_are_counted_and_left_out_of_the_mean(folders: tuple[Path, Path]) -> None:
    noisy, clean = folders
    soundfile.write(noisy / "z.wav", noisy_of(np.zeros(16_000, np.float32)), 16_000)
    soundfile.write(clean / "z.wav", np.zeros(16_000), 16_000)
    report = evaluate_pairs(find_pairs(noisy, clean), None, metrics=("stoi",), jobs=1)
    (mean,) = report.means()
    assert mean.excluded == {"stoi": 1}
    assert mean.values["stoi"] == pytest.approx(np.mean([row.scores.values["stoi"] for row in report.files[:2]]))
    assert report.notes() == [
        "STOI, noisy: 1 of 3 files excluded from the mean (1: the clean signal is silent)",
    ]
    assert report.to_dict()["files"][2]["stoi"] is None


def test_processes_give_the_same_figures_in_the_same_order(folders: tuple[Path, Path], model: SlimModel) -> None:
    pairs = find_pairs(*folders)
    one, two = (evaluate_pairs(pairs, model, ufs=[0.5], metrics=["stoi"], jobs=jobs) for jobs in (1, 2))
    assert one == two


def test_files_at_other_rates_are_resampled(tmp_path: Path) -> None:
    for kind, rate in (("noisy", 48_000), ("clean", 16_000)):
        (tmp_path / kind).mkdir()
        time = np.arange(rate) / rate
        tone = 0.3 * np.sin(2 * np.pi * 440 * time)
        soundfile.write(tmp_path / kind / "a.wav", np.stack([tone, tone], 1), rate, subtype="FLOAT")
    report = evaluate_pairs(find_pairs(tmp_path / "noisy", tmp_path / "clean"), None, metrics=["si_sdr"], jobs=1)
    assert report.files[0].scores.values["si_sdr"] > 30


def test_a_bad_pair_is_named_and_left_out(folders: tuple[Path, Path]) -> None:
    noisy, clean = folders
    whole = evaluate_pairs(find_pairs(noisy, clean), None, metrics=FAST, jobs=1)
    soundfile.write(clean / "b.wav", speech_like(1.0), 16_000)
    report = evaluate_pairs(find_pairs(noisy, clean), None, metrics=FAST, jobs=1)
    assert len(report.files) == len(whole.files) - 1
    (failure,) = report.failures
    assert "b.wav has 24000 samples at 16000 Hz" in failure.reason and "16000" in failure.reason
    (clean / "b.wav").write_bytes(b"RIFF")
    (failure,) = evaluate_pairs(find_pairs(noisy, clean), None, metrics=FAST, jobs=1).failures
    assert "clean/b.wav" in failure.reason
    for path in clean.rglob("*.*"):
        path.write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="no pair could be scored"):
        evaluate_pairs(find_pairs(noisy, clean), None, metrics=FAST, jobs=1)


def test_wrong_arguments_raise(folders: tuple[Path, Path], model: SlimModel) -> None:
    pairs = find_pairs(*folders)
    with pytest.raises(ValueError, match=r"uf = 0\.3 is not one of this model's widths"):
        evaluate_pairs(pairs, model, ufs=[0.3], metrics=FAST)
    with pytest.raises(ValueError, match="jobs = 0"):
        evaluate_pairs(pairs, model, metrics=FAST, jobs=0)
    with pytest.raises(ValueError, match="there is no model"):
        evaluate_pairs(pairs, None, ufs=[1.0], metrics=FAST)
    with pytest.raises(ValueError, match="pairs is empty"):
        evaluate_pairs([], model, metrics=FAST)


def routed_report(widths: tuple[float, ...] = (0.5, 1.0)) -> Report:
    """Three files at two widths, of 10 and 20 MACs, and at a budget that uses each for half of the frames."""

    def scores(si_sdr: float, stoi: float) -> Scores:
        return Scores({"si_sdr": si_sdr, "stoi": stoi}, {})

    rows = []
    for file, level, chosen in (("a", -5.0, (0, 4)), ("b", 0.0, (2, 2)), ("c", 5.0, (4, 0))):
        rows += [
            FileScores(file, None, scores(level, 0.5)),
            FileScores(file, 0.5, scores(level + 4, 0.7)),
            FileScores(file, 1.0, scores(level + 8, 0.9)),
            FileScores(file, Dynamic(0.7), scores(1.2 * level + 7, 0.6), chosen),
        ]
    kept = (None, *widths, Dynamic(0.7))
    return Report(("si_sdr", "stoi"), kept, tuple(r for r in rows if r.uf in kept), {0.5: 10.0, 1.0: 20.0}, 1.0)


def test_a_router_is_compared_with_the_line_between_the_widths_beside_it() -> None:
    (found,) = summarise(routed_report())
    assert found["average_uf"] == 0.75 and found["macs_per_sample"] == 16
    assert found["rank_correlation"] == pytest.approx(-1)
    # With 1 for the router, six tenths of the way: 6.4 dB above the input, and 0.82.
    above = found["above_line"]
    assert above["si_sdr"]["mean"] == pytest.approx(0.6) and above["stoi"]["mean"] == pytest.approx(-0.22)
    assert above["si_sdr"]["low"] == pytest.approx(-0.4) and above["si_sdr"]["high"] == pytest.approx(1.6)
    assert above["stoi"]["low"] == pytest.approx(above["stoi"]["high"])
    assert "SI-SDR +0.60 (-0.40 to +1.60), STOI -0.2200 (-0.2200 to -0.2200)." in sentences(routed_report())[0]
    # Dearer than the only width, it is compared with that; without any, with nothing.
    assert summarise(routed_report((0.5,)))[0]["above_line"]["si_sdr"]["mean"] == pytest.approx(3)
    assert summarise(routed_report(()))[0]["above_line"] == {}
    # A file without a score has no distance.
    nan = replace(routed_report(), metrics=("stoi",))
    files = tuple(replace(r, scores=Scores({"stoi": math.nan}, {"stoi": "none"})) for r in nan.files)
    assert summarise(replace(nan, files=files))[0]["above_line"] == {}


def test_a_report_is_compared_with_an_earlier_one_file_by_file(tmp_path: Path) -> None:
    report = routed_report()
    report.write_json(tmp_path / "old.json")
    earlier = json.loads((tmp_path / "old.json").read_text())
    better = tuple(
        replace(row, scores=Scores({"si_sdr": row.scores.values["si_sdr"] + 0.5, "stoi": math.nan}, {"stoi": "none"}))
        for row in report.files
    )
    found = replace(report, files=better).differences(earlier)
    assert list(found) == [0.5, 1.0, Dynamic(0.7)]
    for differences in found.values():
        assert differences["si_sdr"] == pytest.approx((0.5, 0.5, 0.5))
        assert math.isnan(differences["stoi"].mean)
    with pytest.raises(ValueError, match="other files"):
        replace(report, files=report.files[:-4]).differences(earlier)
    with pytest.raises(ValueError, match="no width and metric"):
        replace(report, ufs=(None,)).differences(earlier)


def test_command_prints_a_table_and_writes_what_it_says(
    folders: tuple[Path, Path], model: SlimModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, table, data = tmp_path / "small.safetensors", tmp_path / "out.csv", tmp_path / "out.json"
    save(model, weights)
    options = ["--weights", str(weights), "--uf", "0.25", "--uf", "1", "--metrics", "si_sdr, stoi", "--jobs", "1"]
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(
        app, ["evaluate", *map(str, folders), *options, "--csv", str(table), "--json", str(data)]
    )
    assert result.exit_code == 0, result.output
    assert "Means over 2 files" in result.stdout
    assert "STOI" in result.stdout and "PESQ" not in result.stdout
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["uf"]) for row in rows[:3]] == [("b", "noisy"), ("b", "0.25"), ("b", "1.0")]
    content = json.loads(data.read_text())
    assert content["weights"] == str(weights)
    assert content["config"] == model.config.to_dict()
    assert content["versions"]["torch"] == torch.__version__
    assert content["file_count"] == 2
    assert [row["uf"] for row in content["means"]] == [None, 0.25, 1.0]
    for row, entry in zip(rows, content["files"], strict=True):
        assert float(row["stoi"]) == entry["stoi"]
        assert float(row["si_sdr"]) == entry["si_sdr"]
    assert float(rows[1]["macs_per_sample"]) == content["means"][1]["macs_per_sample"]
    low, high = content["means"][1]["intervals"]["stoi"]
    assert low < content["means"][1]["stoi"] < high
    again = CliRunner().invoke(
        app, ["evaluate", *map(str, folders), *options, "--against", str(data), "--json", str(tmp_path / "new.json")]
    )
    assert "Better than in" in again.stdout and max(map(len, again.stdout.splitlines()[:12])) <= 80
    (_, wide) = json.loads((tmp_path / "new.json").read_text())["differences"]
    assert wide["uf"] == 1.0 and wide["si_sdr"]["mean"] == pytest.approx(0, abs=1e-6)


def test_command_scores_the_noisy_input_alone_and_the_first_files(folders: tuple[Path, Path]) -> None:
    options = ["--noisy-only", "--limit", "1", "--metrics", "stoi", "--jobs", "1"]
    result = CliRunner().invoke(app, ["evaluate", *map(str, folders), *options])
    assert result.exit_code == 0, result.output
    assert "Means over 1 file " in result.stdout
    assert "noisy" in result.stdout and "0.25" not in result.stdout


def test_command_says_what_is_wrong(folders: tuple[Path, Path], tmp_path: Path) -> None:
    run = CliRunner()
    both = ["evaluate", *map(str, folders), "--metrics", "stoi"]
    missing = run.invoke(app, [*both, "--noisy-only", "--csv", str(tmp_path / "no" / "out.csv")])
    assert missing.exit_code == 2 and "not a folder" in missing.stderr
    contradiction = run.invoke(app, [*both, "--noisy-only", "--uf", "1"])
    assert contradiction.exit_code == 2 and "without --uf and --budget" in contradiction.stderr
    (folders[1] / "b.wav").unlink()
    lonely = run.invoke(app, [*both, "--noisy-only"])
    assert lonely.exit_code == 2 and "b.wav" in lonely.stderr
    absent = run.invoke(app, [*both[:3], "--weights", str(tmp_path / "none.safetensors")])
    assert absent.exit_code == 2
