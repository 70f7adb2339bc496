"""Sound devices, with a module in the place of `sounddevice`: there need be no device."""

import sys
import types

import numpy as np
import pytest
from typer.testing import CliRunner

from slimse import SlimModel
from slimse.cli import app
from slimse.cli.devices import Session, run_session
from slimse.live import LiveStreamer


class Stream:
    """Calls back once for each key that is read."""

    opened: "list[Stream]" = []  # noqa: RUF012

    def __init__(self, **options: object) -> None:
        if options["device"] == ("none", None):
            raise ValueError("No input device matching 'none'")
        self.options, self.outputs, self.open = options, [], False
        self.opened.append(self)

    def run(self, block: np.ndarray, status: object = None) -> None:
        """One block through the callback."""
        out = np.empty_like(block)
        self.options["callback"](block, out, len(block), None, status)
        self.outputs.append(out)

    def __enter__(self) -> "Stream":
        self.open = True
        return self

    def __exit__(self, *error: object) -> None:
        self.open = False


@pytest.fixture
def sounddevice(monkeypatch):
    module = types.SimpleNamespace(Stream=Stream, PortAudioError=OSError, query_devices=lambda: "0 Loopback (2 in)")
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    Stream.opened.clear()
    return module


def test_a_session(sounddevice, capsys) -> None:
    model = SlimModel("small").eval()
    rate, blocks = 48_000, (3_000 * np.random.default_rng(0).standard_normal((12, 480))).astype(np.int16)

    def streamer() -> LiveStreamer:
        return LiveStreamer(model, 0.25, sample_rate=rate, block=480, dtype="int16")

    session, pressed = Session(streamer(), None), []

    def keys() -> str:
        at = len(pressed)
        Stream.opened[0].run(blocks[at][:, None], "input overflow" if at == 3 else None)
        pressed.append("b" if at == 5 else "q" if at == 11 else "")
        return pressed[-1]

    run_session(session, sounddevice, (0, "cable"), keys)
    (stream,) = Stream.opened
    assert not stream.open
    options = {name: stream.options[name] for name in ("samplerate", "blocksize", "dtype", "channels", "device")}
    assert options == {"samplerate": rate, "blocksize": 480, "dtype": "int16", "channels": 1, "device": (0, "cable")}
    again, expected = streamer(), []
    for at, block in enumerate(blocks):
        again.enabled = at <= 5
        expected.append(again.feed(block))
    assert np.array_equal(np.concatenate(stream.outputs)[:, 0], np.concatenate(expected))
    assert session.dropouts == 1
    line = session.line()
    assert line.startswith("off  in ")
    assert "UF 0.25" in line
    assert "dropouts 1" in line
    assert "b: bypass" in capsys.readouterr().err


def test_keys_change_the_budget() -> None:
    session = Session(LiveStreamer(SlimModel("small").eval(), 0.25), 0.25)
    assert session.press("+")
    assert session.budget == pytest.approx(0.25 * 2**0.5)
    for _ in range(20):
        session.press("-")
    assert session.budget == 0.125
    for _ in range(20):
        session.press("+")
    assert session.budget == 1.0
    assert not session.press("q")


def test_errors_of_devices(sounddevice, monkeypatch) -> None:
    result = CliRunner().invoke(app, ["live", "--devices"])
    assert result.exit_code == 0
    assert "Loopback" in result.output
    streamer = LiveStreamer(SlimModel("small").eval(), dtype="int16", block=160)
    with pytest.raises(ValueError, match="cannot be opened at 16000 Hz: No input device"):
        run_session(Session(streamer, None), sounddevice, ("none", None), lambda: "q")

    def broken(**options: object) -> object:
        stream = Stream(**options)
        stream.run(np.zeros((159, 1), np.int16))
        assert not stream.outputs[0].any()
        return stream

    # An error in the thread of the sound card ends the command.
    failing = types.SimpleNamespace(Stream=broken, PortAudioError=OSError)
    with pytest.raises(ValueError, match=r"shape \(159,\)"):
        run_session(Session(streamer, None), failing, (None, None), lambda: "")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = CliRunner().invoke(app, ["live"])
    assert result.exit_code == 2
    assert "sound devices cannot be used" in result.output
