"""The pages in headless Chromium, with a fake microphone: that of `slimse serve`, and the one without a server."""

import functools
import http.server
import os
import runpy
import shutil
import socket
import threading
from pathlib import Path

import pytest
import soundfile
import torch

import slimse
from slimse.demo import bundled_clip
from slimse.testing import relative_error

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "examples" / "browser" / "build.py"
PATIENCE = 120_000
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    microphone = tmp_path_factory.mktemp("microphone") / "microphone.wav"
    soundfile.write(microphone, *soundfile.read(bundled_clip()))
    options = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    with playwright.sync_playwright() as tools:
        running = tools.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


@pytest.fixture
def page(browser):
    """A page as wide as a phone that must not complain, nor load anything from elsewhere."""
    found = browser.new_page(viewport={"width": 360, "height": 800})
    found.set_default_timeout(PATIENCE)
    problems, asked = [], set()
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    found.on("request", lambda request: asked.add(request.url.split("/")[2]) if "http" in request.url[:4] else None)
    yield found
    host = found.url.split("/")[2]
    found.close()
    assert [problem for problem in problems if "422" not in problem] == []
    assert asked == {host}


@pytest.fixture(scope="module")
def server():
    """Address of `slimse serve` with the bundled weights."""
    pytest.importorskip("fastapi", reason="needs slimse[serve]")
    import uvicorn

    from slimse.serve.app import create_app

    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(create_app(slimse.load(), "dynamic-v1"), log_level="warning"))
    thread = threading.Thread(target=running.run, args=([listener],))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    running.should_exit = True
    thread.join(30)
    listener.close()


def shows(page, place, text):
    playwright.expect(page.locator(place)).to_contain_text(text, timeout=PATIENCE)


def state(page):
    """Of the player: whether it plays, where, and what is heard."""
    code = """async () => {
        const { player } = await import('./static/app.js')
        await new Promise((resolve) => setTimeout(resolve, 100))
        const heard = Object.entries(player.gains).filter(([, node]) => node.gain.value > 0.99).map(([name]) => name)
        return [player.playing, player.position, heard.join()]
    }"""
    return page.evaluate(code)


def downloaded(page, folder):
    with page.expect_download() as found:
        page.click("#download")
    found.value.save_as(folder / "found.wav")
    return soundfile.read(folder / "found.wav", dtype="float32")[0]


def error_of(found, setting):
    noisy, rate = soundfile.read(bundled_clip(), dtype="float32")
    expected = slimse.enhance(noisy, rate, setting.get("uf"), budget=setting.get("budget"))
    assert found.shape == expected.shape
    return relative_error(torch.from_numpy(found), torch.from_numpy(expected))


def check_access(page):
    """Everything that can be used or seen has a name, and nothing is wider than the page."""
    nameless = """[...document.querySelectorAll('input, select, meter, canvas, button, a')].filter((element) =>
        !(element.labels?.length || element.getAttribute('aria-label') || element.textContent.trim()))
        .map((element) => element.id)"""
    assert page.evaluate(nameless) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def talk(page, uf):
    """The microphone, live and recorded."""
    page.click("#live")
    shows(page, "#live-status", f"Average UF {uf}")
    assert float(page.locator("#live-level-value").inner_text().split()[0]) > -50
    page.click("#live")
    shows(page, "#live", "Start")
    page.click("#record")
    shows(page, "#recorded", "1.")
    page.click("#record")
    shows(page, "#title", "recording.wav")
    shows(page, "#status", "Enhanced")
    assert "silence" not in page.locator("#numbers").inner_text()
    check_access(page)


def test_the_page_of_the_server(page, server, tmp_path):
    page.goto(server)
    page.wait_for_selector("body[data-ready]")
    (tmp_path / "none.wav").write_text("no sound")
    page.set_input_files("#file", tmp_path / "none.wav")
    shows(page, "#error", "cannot decode")
    page.set_input_files("#file", bundled_clip())
    shows(page, "#status", "Enhanced")
    assert not page.locator("#error").is_visible()
    assert error_of(downloaded(page, tmp_path), {"budget": 0.25}) < 1e-3
    # By keyboard alone.
    page.focus("#play")
    page.keyboard.press("Enter")
    playing, first, heard = state(page)
    assert (playing, heard) == (True, "enhanced") and first < 3
    page.focus("#switch input:checked")
    page.keyboard.press("ArrowLeft")
    playing, second, heard = state(page)
    assert (playing, heard) == (True, "noisy") and first < second
    page.keyboard.press("ArrowRight")
    page.select_option("#mode", label="UF 0.125")
    shows(page, "#numbers", "0.125")
    assert state(page)[1] > second and state(page)[2] == "enhanced"
    assert error_of(downloaded(page, tmp_path), {"uf": 0.125}) < 1e-3
    talk(page, "0.1")


def test_the_page_without_a_server_gives_what_python_gives(page, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="needs slimse[onnx]")
    pytest.importorskip("onnxruntime", reason="needs slimse[onnx]")
    # `slimse export` compares more of them, and tests/test_export.py its files.
    monkeypatch.setattr("slimse.export.check.FRAMES", 50)
    try:
        runpy.run_path(str(BUILD))["build"](tmp_path / "page")
    except SystemExit as reason:
        pytest.skip(str(reason))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "page")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as static:
        thread = threading.Thread(target=static.serve_forever)
        thread.start()
        try:
            page.goto(f"http://127.0.0.1:{static.server_port}/")
            page.wait_for_selector("body[data-ready]")
            page.click("#example")
            shows(page, "#status", "Enhanced")
            assert error_of(downloaded(page, tmp_path), {"uf": 0.125}) < 1e-3
            talk(page, "0.1")
        finally:
            static.shutdown()
            thread.join(30)
