"""Many files: lists of them, going on where a run ended, and the table of results."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch

import slimse
from slimse import SlimModel
from slimse.audio.jobs import Job, plan_jobs
from slimse.corpus import ResultsFile, Settings, run_jobs


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SlimModel("small", backend="reference").eval().requires_grad_(False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(3):
        soundfile.write(tmp_path / "in" / f"{index}.wav", np.full(800, 0.1), 16_000)
    return tmp_path


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_lists_name_sources_and_targets(folder):
    table, lines = folder / "list.csv", folder / "list.jsonl"
    table.write_text("id,path\n1,in/0.wav\n2,in/1.wav\n")
    lines.write_text(json.dumps({"audio_filepath": str(folder / "in/2.wav"), "target": "x/y.flac"}) + "\n\n")
    assert plan_jobs([table]) == [Job(folder / f"in/{i}.wav", folder / f"in/{i}.enhanced.wav") for i in (0, 1)]
    assert plan_jobs([table, lines], folder / "out") == [
        *(Job(folder / f"in/{i}.wav", folder / f"out/in/{i}.wav") for i in (0, 1)),
        Job(folder / "in/2.wav", folder / "out/x/y.flac"),
    ]
    for text, message in (("{]", "line 1: is no JSON"), ("[1]", "line 1: expected an object"), ("{}", "line 1: expec")):
        lines.write_text(text)
        with pytest.raises(ValueError, match=message):
            plan_jobs([lines])
    with pytest.raises(ValueError, match="names one file"):
        plan_jobs([table], folder / "one.wav")


def test_a_run_goes_on_and_makes_anew_what_is_not_whole(folder, model):
    plan, table = plan_jobs([folder / "in"], folder / "out"), folder / "results.csv"

    def run(settings, plan):
        with ResultsFile(table, keep=settings.skip_existing) as results:
            found = list(run_jobs(plan, settings, model, 1))
            for _, outcome, _ in found:
                results.add(outcome)
        return [outcome.status for _, outcome, _ in found]

    (folder / "in" / "1.wav").write_text("no sound")
    assert run(Settings("", uf=0.25), plan) == ["enhanced", "failed", "enhanced"]
    assert [row["status"] for row in rows(table)] == ["enhanced", "failed", "enhanced"]
    first = rows(table)[0]
    assert (first["seconds"], first["uf"]) == ("0.05", "0.25")
    assert float(first["level"]) == pytest.approx(-20, abs=0.01)
    assert "cannot be read" in rows(table)[1]["error"]
    soundfile.write(folder / "in" / "1.wav", np.full(800, 0.1), 16_000)
    # Cut off, as by a copy that broke off.
    (folder / "out" / "0.wav").write_bytes((folder / "out" / "0.wav").read_bytes()[:500])
    assert run(Settings("", uf=0.25, skip_existing=True), plan) == ["enhanced", "enhanced", "skipped"]
    assert soundfile.info(folder / "out" / "0.wav").frames == 800
    assert {row["target"] for row in rows(table) if row["status"] == "enhanced"} == {str(job.target) for job in plan}
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is no table of results"):
        ResultsFile(table, keep=True)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_batch_is_what_its_signals_are_alone(model, rate):
    audio = 0.1 * np.random.default_rng(0).standard_normal((3, rate // 2)).astype(np.float32)
    lengths = [rate // 2, rate // 4 + 7, 900]
    together = slimse.enhance_batch(audio, rate, 0.25, lengths=lengths, model=model)
    for row, out, length in zip(audio, together, lengths, strict=True):
        alone = slimse.enhance(row[:length], rate, 0.25, model=model)
        # The frames behind the end of a padded signal reach back into it.
        same = length if length == audio.shape[1] else max(length - rate // 20, 0)
        limit = 1e-5 if rate == 16_000 or same == length else 5e-3
        assert np.abs(out[:same] - alone[:same]).max(initial=0) <= limit * np.abs(alone).max()
        assert not out[length:].any()
    with pytest.raises(ValueError, match="expected 3 integers from 1 to"):
        slimse.enhance_batch(audio, rate, lengths=[1, 2], model=model)
    audio[1, 5] = np.nan
    with pytest.raises(ValueError, match=r"audio\[1\] holds a sample that is not finite"):
        slimse.enhance_batch(audio, rate, model=model)
