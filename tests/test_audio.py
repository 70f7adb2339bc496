"""Finding, reading and writing audio files, and the spectral parts of the enhancement."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from slimse.audio.files import FileInfo, find_files, read_blocks, read_info, read_tags
from slimse.audio.jobs import Job, plan_jobs
from slimse.audio.spectral import BandGain, SharedMask
from slimse.audio.writing import AtomicWriter, writable_format


def noise(channels: int, samples: int, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal((channels, samples))).astype(np.float32)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def decibels(error: np.ndarray, reference: np.ndarray) -> float:
    return float(20 * np.log10(np.abs(error).max() / np.abs(reference).max() + 1e-20))


# Reading -----------------------------------------------------------------------------------------------------------


def test_blocks_are_the_file_in_pieces(tmp_path: Path) -> None:
    audio = noise(2, 1000)
    soundfile.write(tmp_path / "a.wav", audio.T, 16_000, subtype="FLOAT")
    blocks = list(read_blocks(tmp_path / "a.wav", 300))
    assert [block.shape for block in blocks] == [(2, 300)] * 3 + [(2, 100)]
    assert np.array_equal(np.concatenate(blocks, axis=1), audio)


@pytest.mark.parametrize("content", [b"", b"this is no audio"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.wav: cannot be read: (the file is empty|.*recogni)"):
        read_info(path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    soundfile.write(path, noise(1, 50_000)[0], 16_000)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(ValueError, match=r"cut\.flac: damaged"):
        list(read_blocks(path, 4000))


# Writing -----------------------------------------------------------------------------------------------------------


def test_a_file_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.wav"
    info = FileInfo(10, 16_000, 1, "WAV", "PCM_16", "FILE")
    with AtomicWriter(target, info) as writer:
        writer.write(noise(1, 10))
        assert not target.exists()
        assert [path.name for path in target.parent.iterdir()] == [writer._part.path.name]
    assert [path.name for path in target.parent.iterdir()] == ["a.wav"]
    assert soundfile.info(target).frames == 10


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_remains_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    info = FileInfo(10, 16_000, 1, "WAV", "PCM_16", "FILE")
    with pytest.raises(error), AtomicWriter(tmp_path / "a.wav", info) as writer:
        writer.write(noise(1, 10))
        raise error
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept_unless_forced(tmp_path: Path) -> None:
    target = tmp_path / "a.wav"
    touch(tmp_path, "a.wav")
    info = FileInfo(10, 16_000, 1, "WAV", "PCM_16", "FILE")
    with pytest.raises(FileExistsError, match=r"a\.wav"):
        AtomicWriter(target, info)
    assert target.read_bytes() == b"x"
    with AtomicWriter(target, info, force=True) as writer:
        writer.write(noise(1, 10))
    assert soundfile.info(target).frames == 10


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(FileExistsError),
        AtomicWriter(tmp_path / "a.wav", FileInfo(10, 16_000, 1, "WAV", "PCM_16", "FILE")) as writer,
    ):
        writer.write(noise(1, 10))
        touch(tmp_path, "a.wav")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"x"]


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("a.wav", ("WAV", "PCM_24"), ("WAV", "PCM_24")),
        ("a.wav", ("WAVEX", "FLOAT"), ("WAVEX", "FLOAT")),
        ("a.flac", ("FLAC", "PCM_24"), ("FLAC", "PCM_24")),
        ("a.flac", ("WAV", "FLOAT"), ("FLAC", "PCM_24")),
        ("a.flac", ("OGG", "VORBIS"), ("FLAC", "PCM_16")),
        ("a.opus", ("WAV", "PCM_16"), ("OGG", "OPUS")),
        ("a.ogg", ("OGG", "OPUS"), ("OGG", "OPUS")),
        ("a.MP3", ("WAV", "PCM_16"), ("MP3", "MPEG_LAYER_III")),
        ("a.aif", ("AIFF", "PCM_24"), ("AIFF", "PCM_24")),
    ],
)
def test_format_of_the_output(name: str, source: tuple[str, str], expected: tuple[str, str]) -> None:
    assert writable_format(Path(name), FileInfo(10, 16_000, 1, *source, "FILE"))[:2] == expected


def test_a_wav_too_long_for_its_header_becomes_rf64() -> None:
    long = FileInfo(10 * 3600 * 48_000, 48_000, 2, "FLAC", "PCM_16", "FILE")
    assert writable_format(Path("a.wav"), long)[0] == "RF64"


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.xyz: cannot be written: '\.xyz' is none of"):
        writable_format(Path("a.xyz"), FileInfo(10, 16_000, 1, "WAV", "PCM_16", "FILE"))
    with pytest.raises(ValueError, match=r"as WAV with MPEG_LAYER_III, 2 channels.*another format"):
        AtomicWriter(tmp_path / "a.wav", FileInfo(10, 16_000, 2, "WAV", "MPEG_LAYER_III", "FILE"))
    with pytest.raises(ValueError, match=r"reads AU with G729 but does not write it.*another format"):
        AtomicWriter(tmp_path / "a.au", FileInfo(10, 16_000, 1, "AU", "G729", "FILE"))
    with pytest.raises(ValueError, match=r"22050 Hz.*Opus only supports"):
        AtomicWriter(tmp_path / "a.opus", FileInfo(10, 22_050, 1, "WAV", "PCM_16", "FILE"))
    assert not list(tmp_path.iterdir())
    # The same as a folder without the right to write, which root always has.
    touch(tmp_path, "file")
    with pytest.raises(ValueError, match=r"a\.wav: cannot be written: Not a directory"):
        AtomicWriter(tmp_path / "file/a.wav", FileInfo(10, 16_000, 1, "WAV", "PCM_16", "FILE"))


def test_tags_are_carried_along(tmp_path: Path) -> None:
    info = FileInfo(10, 16_000, 1, "FLAC", "PCM_16", "FILE")
    with AtomicWriter(tmp_path / "a.flac", info, tags={"title": "Noon", "artist": "Bell"}) as writer:
        writer.write(noise(1, 10))
    assert read_tags(tmp_path / "a.flac").items() >= {("title", "Noon"), ("artist", "Bell")}


# Which files -------------------------------------------------------------------------------------------------------


def test_folders_are_searched_for_audio(tmp_path: Path) -> None:
    touch(tmp_path, "b.wav", "sub/deep/a.FLAC", "c.txt", ".hidden.wav", ".git/x.wav", "out/d.ogg", "e.opus")
    names = [str(path.relative_to(tmp_path)) for path in find_files(tmp_path, skip=tmp_path / "out")]
    assert names == ["b.wav", "e.opus", "sub/deep/a.FLAC"]


def test_default_outputs_lie_beside_the_inputs_and_are_not_inputs_again(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "a.enhanced.wav", "sub/b.mp3")
    assert plan_jobs([tmp_path]) == [
        Job(tmp_path / "a.wav", tmp_path / "a.enhanced.wav"),
        Job(tmp_path / "sub/b.mp3", tmp_path / "sub/b.enhanced.mp3"),
    ]
    # A file that is named is taken at its word.
    named = tmp_path / "a.enhanced.wav"
    assert plan_jobs([named]) == [Job(named, tmp_path / "a.enhanced.enhanced.wav")]


def test_outputs_in_a_folder_mirror_the_tree(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.wav", "in/sub/b.mp3", "c.ogg")
    out = tmp_path / "out"
    targets = [job.target for job in plan_jobs([tmp_path / "in", tmp_path / "c.ogg"], out)]
    assert targets == [out / "a.wav", out / "sub/b.mp3", out / "c.ogg"]


def test_one_file_may_name_its_output(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    assert plan_jobs([tmp_path / "a.wav"], tmp_path / "x.flac")[0].target == tmp_path / "x.flac"
    (tmp_path / "folder.wav").mkdir()
    assert plan_jobs([tmp_path / "a.wav"], tmp_path / "folder.wav")[0].target == tmp_path / "folder.wav/a.wav"


def test_plans_that_would_lose_something_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.wav", "two/a.wav", "notes.txt")
    (tmp_path / "none").mkdir()
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(ValueError, match=r"would both be written to .*out.a\.wav"):
        plan_jobs([one, two], tmp_path / "out")
    with pytest.raises(ValueError, match="is an input"):
        plan_jobs([one], one)
    with pytest.raises(ValueError, match="would both be written"):
        plan_jobs([one / "a.wav", one / "a.wav"])
    with pytest.raises(ValueError, match="names one file"):
        plan_jobs([one, two], tmp_path / "x.wav")
    with pytest.raises(ValueError, match=r"notes\.txt is a file"):
        plan_jobs([one], tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"'\.m4a' is none of .*flac.*make that first"):
        plan_jobs([one / "a.wav"], tmp_path / "a.m4a")
    assert plan_jobs([one / "a.wav"], tmp_path / "v1.0")[0].target == tmp_path / "v1.0/a.wav"
    with pytest.raises(ValueError, match="no audio files in"):
        plan_jobs([tmp_path / "none"])
    with pytest.raises(ValueError, match="missing: no such file"):
        plan_jobs([tmp_path / "missing"])


# Spectral parts ----------------------------------------------------------------------------------------------------


def run_mask(noisy: np.ndarray, estimate: np.ndarray, chunk: int) -> np.ndarray:
    mask = SharedMask(noisy.shape[0])
    starts = range(0, noisy.shape[1], chunk)
    parts = [mask.feed(noisy[:, i : i + chunk], estimate[:, i : i + chunk]) for i in starts]
    return np.concatenate([*parts, mask.feed(noisy[:, :0], estimate[:, :0], last=True)], axis=1)


@pytest.mark.parametrize("samples", [1, 127, 512, 5000])
def test_the_mask_of_the_input_itself_changes_nothing(samples: int) -> None:
    x = noise(3, samples)
    assert run_mask(x, x, 100).shape == x.shape
    assert decibels(run_mask(x, x, 100) - x, x) < -120


def test_the_mask_does_not_depend_on_the_pieces() -> None:
    x, s = noise(2, 5000), noise(2, 10_000)[:, 5000:]
    whole = run_mask(x, s, 5000)
    assert decibels(run_mask(x, s, 77) - whole, whole) < -110


def test_the_mask_is_shared_and_never_amplifies() -> None:
    x = noise(2, 4000)
    # The estimates differ by channel; least squares gives both channels what explains the louder one.
    estimate = np.stack([0.5 * x[0], 0.25 * x[0]])
    out = run_mask(np.stack([x[0], 0.5 * x[0]]), estimate, 4000)
    assert decibels(out - 0.5 * np.stack([x[0], 0.5 * x[0]]), x) < -100
    assert decibels(run_mask(x, 3 * x, 4000) - x, x) < -100


def test_silence_has_a_silent_mask() -> None:
    silence = np.zeros((2, 3000), np.float32)
    assert not run_mask(silence, silence, 500).any()
    assert not run_mask(silence, noise(2, 3000), 500).any()


def gains(noisy: np.ndarray, enhanced: np.ndarray, rate: int, count: int) -> np.ndarray:
    band = BandGain(rate, 16_000)
    band.feed(noisy, enhanced, last=True)
    return band.at(0, count)


def test_the_band_gain_is_that_of_the_top_of_the_band() -> None:
    time = np.arange(16_000) / 16_000
    low, top = np.sin(2 * np.pi * 1000 * time), np.sin(2 * np.pi * 5000 * time)
    before = (low + top)[None].astype(np.float32)
    after = (low + 0.1 * top)[None].astype(np.float32)
    assert gains(before, after, 48_000, 48_000)[2000:-2000] == pytest.approx(0.1, rel=0.02)
    # Nothing at the top: the gain of all there is.
    quiet = gains(low[None].astype(np.float32), 0.3 * low[None].astype(np.float32), 48_000, 48_000)
    assert quiet[2000:-2000] == pytest.approx(0.3, rel=0.02)


def test_the_band_gain_follows_within_fifty_milliseconds_and_stays_below_one() -> None:
    before = noise(1, 32_000)
    after = before * np.where(np.arange(32_000) < 16_000, 2.0, 0.0).astype(np.float32)
    gain = gains(before, after, 48_000, 96_000)
    assert gain.max() == 1
    assert gain[: 48_000 - 2400].min() == 1
    assert gain[48_000 + 2400 :].max() < 0.01
