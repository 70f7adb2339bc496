"""The server behind the page: what it answers, whom it refuses, and its limits."""

import io
import json
import sys
import threading
from email.parser import BytesParser
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import slimse
from slimse.cli import app as command
from slimse.testing import relative_error, tiny_model

pytest.importorskip("fastapi", reason="needs slimse[serve]")
testclient = pytest.importorskip("fastapi.testclient", reason="needs httpx", exc_type=(ImportError, RuntimeError))
from starlette.websockets import WebSocketDisconnect  # noqa: E402

from slimse.serve import app as server  # noqa: E402
from slimse.serve.app import create_app  # noqa: E402
from slimse.serve.limits import Limits  # noqa: E402
from slimse.serve.server import is_loopback, run_server  # noqa: E402

RATE = 16_000
LIVE = "ws://127.0.0.1:8000/api/live"


@pytest.fixture(scope="module")
def model():
    return tiny_model(router=True)


def client(model, host="127.0.0.1:8000", hosts=(), **limits):
    app = create_app(model, "tiny", limits=Limits(**limits), hosts=hosts)
    return testclient.TestClient(app, base_url=f"http://{host}")


def file(seconds=1.0, rate=RATE, channels=1, kind="WAV"):
    sound = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    data = io.BytesIO()
    soundfile.write(data, sound, rate, format=kind)
    return data.getvalue()


def parts(response):
    """Report and WAV file of an answer, by a parser that is not ours."""
    assert response.status_code == 200, response.text
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    found = [part.get_payload(decode=True) for part in BytesParser().parsebytes(head + response.content).get_payload()]
    return json.loads(found[0]), io.BytesIO(found[1])


@pytest.mark.parametrize(("rate", "channels", "kind"), [(RATE, 1, "FLAC"), (48_000, 2, "WAV")])
def test_a_file_comes_back_as_enhance_gives_it(model, rate, channels, kind):
    data = file(0.5, rate, channels, kind)
    noisy = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].T
    for setting in ({"uf": model.ufs[0]}, {"budget": 0.5}):
        report, wav = parts(client(model).post("/api/enhance", params=setting, content=data))
        found, found_rate = soundfile.read(wav, dtype="float32", always_2d=True)
        assert (found_rate, found.shape) == (rate, noisy.T.shape)
        expected = slimse.enhance(noisy, rate, setting.get("uf"), budget=setting.get("budget"), model=model)
        assert np.abs(found.T - expected).max() <= 1 / 32_768
        assert report["uf"] == pytest.approx(np.mean(report["ufs"]), abs=1e-4)
        assert set(np.round(report["ufs"], 4)) <= {round(uf, 4) for uf in model.ufs}
        assert report["level"] == pytest.approx(10 * np.log10(np.square(noisy).mean()), abs=1e-3)
        assert (report["seconds"], report["channels"]) == (0.5, channels)


def test_the_page_and_its_files_come_from_here_alone(model):
    browser = client(model)
    page = browser.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for name in ("app.js", "engine.js", "sound.js", "draw.js", "worklet.js", "style.css", "noisy.flac"):
        found = browser.get(f"/static/{name}")
        assert found.status_code == 200, name
        assert name.endswith(".flac") or ("http://" not in found.text and "https://" not in found.text), name
    assert "//" not in page.text.replace("<!doctype", "")
    assert browser.get("/static/../app.py").status_code == 404
    assert browser.get("/api/about").json()["ufs"] == list(model.ufs)


def test_hosts_and_origins(model):
    data = file(0.1)
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.0.7:8000", "studio.example:8000"):
        browser = client(model, host, hosts=["Studio.example"])
        assert browser.get("/api/about").status_code == 200, host
        for origin, status in ((f"http://{host}", 200), ("http://evil.example", 403), ("null", 403), (None, 200)):
            headers = {} if origin is None else {"Origin": origin}
            assert browser.post("/api/enhance", content=data, headers=headers).status_code == status, origin
    # A name of somebody else that leads to this address; and none.
    assert client(model, "evil.example:8000").get("/").status_code == 421
    assert client(model).get("/", headers={"Host": "a]:["}).status_code == 421
    for host, origin in (("127.0.0.1", "http://127.0.0.1:9"), ("evil.example", "http://evil.example")):
        headers = {"Host": host, "Origin": origin}
        with pytest.raises(WebSocketDisconnect), client(model).websocket_connect(LIVE, headers=headers):
            pass


def test_files_beyond_the_limits(model):
    small = client(model, megabytes=0.01, seconds=0.3)
    for data, status, words in (
        (file(0.2), 200, b""),
        (file(0.31), 413, b"longer than 0 s"),
        (file(2.0), 413, b"more than 0.01 MB"),
        (file(1.0, 8_000, kind="FLAC")[:200], 422, b"cannot be read"),
        (b"no sound", 422, b"cannot be read"),
        (b"", 422, b"cannot be read"),
        (file(0), 422, b"no samples"),
    ):
        response = small.post("/api/enhance", content=data)
        assert (response.status_code, words in response.content) == (status, True), response.content[:99]
    # Without a length beforehand, too.
    chunked = small.post("/api/enhance", content=iter([bytes(9_000), bytes(9_000)]))
    assert chunked.status_code == 413
    for setting in ({"uf": 0.3}, {"budget": 7}, {"uf": model.ufs[0], "budget": 0.5}, {"uf": "wide"}):
        assert small.post("/api/enhance", params=setting, content=file(0.1)).status_code == 422
    with pytest.raises(ValueError, match="jobs = 0"):
        Limits(jobs=0)


def test_many_files_at_once_and_long_work_are_refused(model, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()

    def wait(data, *args, check, **options):
        entered.set()
        go_on.wait(30)
        check()

    monkeypatch.setattr(server, "enhance_sound", wait)
    # One event loop for both, as in a server.
    with client(model, jobs=1, work_seconds=1e-9) as browser:
        answers = []
        first = threading.Thread(target=lambda: answers.append(browser.post("/api/enhance", content=b"1")))
        first.start()
        assert entered.wait(30)
        assert browser.post("/api/enhance", content=b"2").status_code == 503
        go_on.set()
        first.join(30)
        assert (answers[0].status_code, b"took more than" in answers[0].content) == (503, True)
        # The place is free again.
        assert b"took more than" in browser.post("/api/enhance", content=b"3").content


def test_live_sound_is_that_of_a_live_streamer(model):
    rate, block = 48_000, 480
    sound = (0.1 * np.random.default_rng(1).standard_normal(60 * block)).astype(np.float32)
    streamer = slimse.Streamer(model, sample_rate=rate)
    expected, found, reports = [], [], []
    with client(model).websocket_connect(LIVE, headers={"Origin": "http://127.0.0.1:8000"}) as socket:
        socket.send_text(json.dumps({"rate": rate, "budget": 0.5}))
        assert json.loads(socket.receive_text())["delay_ms"] == pytest.approx(streamer.delay_ms)
        setting = {"budget": 0.5}
        for start in range(0, len(sound), block):
            if start == 30 * block:
                setting = {"uf": model.ufs[0]}
                streamer.enabled = False
                socket.send_text(json.dumps({**setting, "enabled": False}))
            piece = sound[start : start + block]
            socket.send_bytes(piece.tobytes())
            expected.append(streamer.feed(piece, **setting))
            found.append(np.frombuffer(socket.receive_bytes(), np.float32))
            if start // block % 10 == 9:
                reports.append(json.loads(socket.receive_text()))
    assert relative_error(torch.from_numpy(np.concatenate(found)), torch.from_numpy(np.concatenate(expected))) < 1e-6
    frames = [frame for report in reports for frame in report["frames"]]
    assert len(frames) > 25 and all(0 <= speech <= 1 and round(uf, 3) in model.ufs for uf, speech, _ in frames)
    assert reports[-1]["load"] > 0


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        (["nonsense"], 1007, "no JSON"),
        ([b"\0\0\0\0"], 1007, "expected settings"),
        (['{"rate": 48000.5}'], 1007, "rate"),
        (['{"rate": 16000, "uf": 0.3}'], 1007, "0.3"),
        (['{"rate": 16000, "wide": 1}'], 1007, "wide"),
        (['{"rate": 16000}', '{"uf": 0.125, "budget": 0.5}'], 1007, "one of both"),
        (['{"rate": 16000}', b"\0\0\0"], 1007, "3 bytes"),
        (['{"rate": 16000}', bytes(4 * 9_000)], 1007, "36000 bytes"),
        (['{"rate": 16000}', np.float32([np.nan]).tobytes()], 1007, "nan"),
        (['{"rate": 16000}'], 1008, "nothing came"),
        (['{"rate": 16000}', *[bytes(4 * 8_000)] * 9], 1008, "faster than it sounds"),
    ],
)
def test_live_sessions_that_are_ended(model, messages, code, words):
    browser = client(model, idle_seconds=0.5 if words == "nothing came" else 60, ahead_seconds=2)
    with pytest.raises(WebSocketDisconnect) as end, browser.websocket_connect(LIVE) as socket:
        for message in messages:
            (socket.send_text if isinstance(message, str) else socket.send_bytes)(message)
        for _ in range(99):
            message = socket.receive()
            if message["type"] == "websocket.close":
                raise WebSocketDisconnect(message["code"], message["reason"])
    assert end.value.code == code
    assert words in end.value.reason


def test_so_many_live_sessions_at_once(model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with client(model, sessions=1) as browser, browser.websocket_connect(LIVE) as first:
        first.send_text('{"rate": 16000}')
        first.receive_text()
        with browser.websocket_connect(LIVE) as second:
            assert second.receive()["code"] == 1013
        now[0] = 1_000.0
        first.send_text("{}")
        assert first.receive()["code"] == 1000
        with browser.websocket_connect(LIVE) as third:
            third.send_text('{"rate": 16000}')
            assert "delay_ms" in third.receive_text()


def test_a_model_that_needs_the_whole_signal_is_refused():
    with pytest.raises(ValueError, match="causal"):
        create_app(slimse.SlimModel("dns48"))


def test_the_command_listens_on_loopback_and_warns_elsewhere(monkeypatch):
    calls = []
    monkeypatch.setattr("slimse.serve.server.run_server", lambda app, host, port, listening: calls.append((host, port)))
    monkeypatch.setattr(sys.modules["slimse.cli.serve"], "make_ready", lambda model: model)
    quiet = CliRunner().invoke(command, ["serve"])
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    loud = CliRunner().invoke(command, ["serve", "--host", "0.0.0.0", "--port", "0"])
    assert "other machines" in loud.stderr
    assert calls == [("127.0.0.1", 8000), ("0.0.0.0", 0)]
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "::", "studio.example")] == [
        *(True, True, True, False, False)
    ]
    with pytest.raises(ValueError, match="cannot listen"):
        run_server(None, "203.0.113.1", 0)
