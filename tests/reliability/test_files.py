"""Full disks, killed processes, and what is no sound: nothing lost, nothing let in."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimse.atomic import AtomicFile
from slimse.audio.files import FileInfo, find_files, read_info, read_mono
from slimse.audio.writing import AtomicWriter

SUPPRESS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def limit():
    """Set the largest size of a file that this process may write: as a full disk, without one."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III"),
                          ("a.wav", "IMA_ADPCM"), ("a.opus", "OPUS")]
)  # fmt: skip
def test_a_file_that_the_disk_did_not_take_whole_is_not_taken_for_done(tmp_path, limit, name, subtype):
    container = {"ogg": "OGG", "opus": "OGG"}.get(name[2:], name[2:].upper())
    info = FileInfo(0, 48_000 if subtype == "OPUS" else 16_000, 1, container, subtype, "FILE")
    x = (0.1 * np.random.default_rng(0).standard_normal((1, 16_000))).astype(np.float32)

    def write():
        with AtomicWriter(tmp_path / name, info) as writer:
            writer.write(x)

    write()
    size = (tmp_path / name).stat().st_size
    (tmp_path / name).unlink()
    for most in (size - 2, size - 40, size - 700, size // 2, 0):
        limit(most)
        with pytest.raises(ValueError, match=r"a\.\w+: cannot be written"):
            write()
        limit(resource.RLIM_INFINITY)
        assert not list(tmp_path.iterdir())


def test_temporary_files_of_killed_processes_are_deleted_and_those_in_use_are_not(tmp_path):
    code = "import sys, time; from pathlib import Path; from slimse.atomic import AtomicFile\n"
    code += "AtomicFile(Path(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x.wav")], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    AtomicFile(tmp_path / "y.wav").discard()
    assert len(list(tmp_path.iterdir())) == 1
    child.kill()
    child.wait()
    child.stdout.close()
    subprocess.run([sys.executable, "-c", code.replace("time.sleep(60)", "0"), str(tmp_path / "z.wav")], check=True)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_regular_file_is_named_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    for name, reason in (("pipe.wav", "no regular file"), ("loop.wav", "symbolic links"), ("x" * 300, "too long")):
        with pytest.raises(ValueError, match=reason):
            read_info(tmp_path / name)
    soundfile.write(tmp_path / "slow.wav", np.zeros(300), 1)
    with pytest.raises(ValueError, match=r"slow\.wav: sample_rate = 1: expected an integer from 1000 to 768000 Hz"):
        read_mono(tmp_path / "slow.wav", 16_000)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    deep = tmp_path
    for _ in range(17):
        deep /= "d" * 250
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=descriptor)
        descriptor = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
    problems = []
    assert find_files(tmp_path, failed=problems.append) == []
    assert "too long" in str(problems[0])
    with pytest.raises(ValueError, match="too long"):
        find_files(tmp_path)


def test_the_longest_name_can_be_written(tmp_path):
    target = tmp_path / ("n" * 251 + ".wav")
    with AtomicWriter(target, FileInfo(0, 16_000, 1, "WAV", "PCM_16", "FILE")) as writer:
        writer.write(np.zeros((1, 10), np.float32))
    assert target.is_file()


@SUPPRESS
@given(cut=st.integers(0, 3000), at=st.integers(0, 2999), value=st.integers(0, 255), suffix=st.sampled_from(
    ["wav", "flac", "ogg", "mp3", "aiff", "w64", "caf"]))  # fmt: skip
def test_damaged_audio_is_read_or_refused_by_name(tmp_path, cut, at, value, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.1 * np.sin(np.arange(1500)), 16_000)
    content = bytearray(path.read_bytes()[: len(path.read_bytes()) - cut % 3000])
    if at < len(content):
        content[at] = value
    path.write_bytes(content)
    try:
        read_mono(path, 16_000)
    except ValueError as error:
        assert "a." in str(error)
