"""Many files: lists of them, going on where a run ended, and the table of results."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

import slimse
from slimse import SlimModel, corpus
from slimse.audio.files import FileInfo
from slimse.audio.jobs import Job, plan_jobs
from slimse.corpus import ResultsFile, Settings, group_jobs, run_jobs

SMALL = SlimModel("small")


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


# Groups of files ---------------------------------------------------------------------------------------------------


@given(
    files=st.lists(st.tuples(st.sampled_from([8_000, 16_000]), st.integers(0, 40_000), st.integers(0, 2)), max_size=30),
    batch=st.sampled_from([0.5, 2.0, 9.0]),
)
def test_groups_hold_every_file_once_and_are_full(files, batch):
    plan = [Job(Path(str(index)), Path(f"{index}.out")) for index in range(len(files))]

    def read_info(path):
        rate, frames, channels = files[int(path.name)]
        if not channels:
            raise ValueError("no sound")
        return FileInfo(frames, rate, channels, "WAV", "PCM_16", "FILE")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "read_info", read_info)
        groups = group_jobs(plan, Settings("", batch=batch), SMALL)
    assert sorted(job for group in groups for job in group) == sorted(plan)
    found = [[files[int(job.source.name)] for job in group] for group in groups]
    short = [group for group in found if group[0][2] == 1 and 0 < group[0][1] <= batch * group[0][0]]
    assert found == [group for group in found if group not in short] + short
    assert [file for group in short for file in group] == sorted(file for group in short for file in group)
    for group in (group for group in found if len(group) > 1):
        assert len({file[0] for file in group}) == 1 and {file[2] for file in group} == {1}
        assert group[-1][1] * len(group) <= batch * group[0][0]
    for group, (after, *_) in itertools.pairwise(short):
        assert after[0] != group[0][0] or after[1] * (len(group) + 1) > batch * after[0]


def test_without_a_batch_or_with_a_model_that_needs_the_whole_signal_files_run_alone(folder, model):
    plan = plan_jobs([folder / "in"], folder / "out")
    assert len(group_jobs(plan, Settings("", batch=9.0), model)) == 1
    assert group_jobs(plan, Settings(""), model) == [[job] for job in plan]
    signal = SlimModel(slimse.ModelConfig(model.config.network, level="signal"))
    assert group_jobs(plan, Settings("", batch=9.0), signal) == [[job] for job in plan]


@pytest.fixture
def passes(monkeypatch):
    """How many files ran together, pass by pass."""
    found, run = [], corpus.run_together

    def noted(signals, *rest):
        found.append(len(signals))
        return run(signals, *rest)

    monkeypatch.setattr(corpus, "run_together", noted)
    return found


def write(path, samples, rate, channels=1, subtype="PCM_24"):
    noise = np.random.default_rng(samples).standard_normal((samples, channels)) * np.linspace(0, 0.2, samples)[:, None]
    with soundfile.SoundFile(path, "w", rate, channels, subtype) as file:
        file.title = path.stem
        file.write(noise)


@pytest.mark.parametrize(("rate", "width"), [(16_000, {"uf": 0.25}), (44_100, {"budget": 0.3})])
def test_a_group_gives_what_its_files_give_alone(tmp_path, passes, rate, width):
    network = slimse.load(backend="reference")
    (tmp_path / "in").mkdir()
    for index, share in enumerate([0.2, 0.1, 0.15]):
        write(tmp_path / f"in/{index}.flac", int(rate * share), rate)
    write(tmp_path / "in/long.wav", int(rate * 1.01), rate)
    write(tmp_path / "in/stereo.wav", rate // 10, rate, 2)
    # These two have headers like the others.
    soundfile.write(tmp_path / "in/nan.wav", np.full(rate // 6, np.nan), rate, subtype="FLOAT")
    (tmp_path / "in/cut.flac").write_bytes((tmp_path / "in/2.flac").read_bytes()[: rate // 5])

    def run(name, batch):
        plan, settings = plan_jobs([tmp_path / "in"], tmp_path / name), Settings("", **width, dry=0.1, batch=batch)
        return {job.source.name: (job.target, outcome) for job, outcome, _ in run_jobs(plan, settings, network, 1)}

    alone, together = run("alone", 0.0), run("together", 1.0)
    assert passes == [3] and sorted(alone) == sorted(together)
    for name, (target, expected) in alone.items():
        other, found = together[name]
        for field in ("source", "status", "error", "seconds", "level"):
            assert getattr(found, field) == getattr(expected, field)
        assert (found.status == "failed") == (name in ("nan.wav", "cut.flac")) != other.exists()
        if name[0] not in "012":
            assert not other.exists() or other.read_bytes() == target.read_bytes()
            continue
        # The router may choose otherwise for the last frame, which hears what is behind the end.
        assert found.uf == pytest.approx(expected.uf, abs=0.03)
        x, y = (soundfile.read(path, dtype="float32")[0] for path in (target, other))
        assert found.enhanced_level == pytest.approx(10 * np.log10(np.square(y).mean()), abs=0.01)
        same = len(x) if name == "0.flac" else len(x) - rate // 20
        assert np.abs(x - y)[:same].max() <= (1e-5 if rate == 16_000 else 5e-3) * np.abs(x).max() + 2**-23
        with soundfile.SoundFile(target) as first, soundfile.SoundFile(other) as second:
            assert first.copy_metadata() == second.copy_metadata() == {"title": name[0]}
            assert (first.subtype, first.frames) == (second.subtype, second.frames)


def test_a_group_leaves_outputs_alone_that_are_there(folder, model, passes):
    for index in range(3, 5):
        soundfile.write(folder / "in" / f"{index}.wav", np.full(900, 0.1), 16_000)
    plan = plan_jobs([folder / "in"], folder / "out")
    list(run_jobs(plan[:2], Settings(""), model, 1))
    plan[1].target.write_bytes(b"cut off")
    settings = Settings("", batch=1.0)
    assert {job: outcome.status for job, outcome, _ in run_jobs(plan[:1], settings, model, 1)} == {plan[0]: "failed"}
    found = {job: outcome.status for job, outcome, _ in run_jobs(plan, settings._replace(skip_existing=True), model, 1)}
    assert found == {plan[0]: "skipped", **dict.fromkeys(plan[1:], "enhanced")} and passes == [3]
    assert {outcome.status for _, outcome, _ in run_jobs(plan, settings._replace(force=True), model, 1)} == {"enhanced"}
    assert passes == [3, 5]


def test_a_failed_pass_leaves_its_files_to_run_one_by_one(folder, model, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(corpus, "run_together", fail)
    alone, together = plan_jobs([folder / "in"], folder / "alone"), plan_jobs([folder / "in"], folder / "together")
    list(run_jobs(alone, Settings(""), model, 1))
    with pytest.warns(RuntimeWarning, match="a pass of 3 files failed, they run one by one: MemoryError"):
        found = list(run_jobs(together, Settings("", batch=1.0), model, 1))
    assert [outcome.status for _, outcome, _ in found] == ["enhanced"] * 3
    for one, other in zip(alone, together, strict=True):
        assert one.target.read_bytes() == other.target.read_bytes()


def test_an_interrupt_of_a_group_keeps_the_files_that_are_finished(folder, model, passes):
    def interrupt(_):
        if len(found) == 1:
            raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        for each in run_jobs(plan_jobs([folder / "in"], folder / "out"), Settings("", batch=1.0), model, 1, interrupt):
            found.append(each)
    assert passes == [3] and [path.name for path in (folder / "out").iterdir()] == ["0.wav"]


def test_a_file_that_grew_after_its_pass_fails(folder, model, monkeypatch):
    def run(signals, *rest):
        soundfile.write(folder / "in" / "1.wav", np.full(1_000, 0.1), 16_000)
        return run_together(signals, *rest)

    run_together = corpus.run_together
    monkeypatch.setattr(corpus, "run_together", run)
    found = run_jobs(plan_jobs([folder / "in"], folder / "out"), Settings("", batch=1.0), model, 1)
    assert [outcome.error.rpartition(": ")[2] for _, outcome, _ in found] == ["", "did it change meanwhile?", ""]
