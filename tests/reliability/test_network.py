"""Nothing reaches for the network unless it is asked to."""

import socket

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import slimse
from slimse.cli import app


@pytest.fixture
def no_sockets(monkeypatch):
    """Let every attempt to open a socket or to look up a name fail, and note it."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("sockets are blocked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    yield tried
    assert tried == []


def test_loading_enhancing_streaming_and_scoring_open_no_socket(no_sockets, tmp_path):
    for kind in ("noisy", "clean"):
        (tmp_path / kind).mkdir()
        soundfile.write(tmp_path / kind / "a.wav", 0.1 * np.sin(np.arange(8000)), 16_000)
    streamer = slimse.Streamer(slimse.load(), runtime="eager")
    streamer.feed(np.zeros(1000, np.float32))
    for arguments in (
        ["enhance", str(tmp_path / "noisy"), "-o", str(tmp_path / "out")],
        [
            "evaluate",
            str(tmp_path / "noisy"),
            str(tmp_path / "clean"),
            "--noisy-only",
            "--metrics",
            "si_sdr",
            "--jobs",
            "1",
        ],
        ["profile", "small"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    with pytest.raises(FileNotFoundError):
        slimse.load("not-there")
    with pytest.raises(OSError, match="blocked"):
        socket.socket()
    no_sockets.clear()
