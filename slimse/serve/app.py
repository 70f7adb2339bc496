"""The server: the page, files in memory, live sessions."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from .. import __version__
from ..demo import bundled_clip
from ..model import SlimModel
from ..profiling import ModelProfile, profile
from .guard import Guard
from .limits import Limits
from .session import LiveSession
from .sound import EnhancedSound, TooLargeError, enhance_sound

_POLL_SECONDS = 0.2
_BAD_DATA, _REFUSED, _TOO_MANY = 1007, 1008, 1013
"""Codes that end a WebSocket."""


class _TooLateError(Exception):
    """The time for a file is over."""


class _GoneError(Exception):
    """Nobody waits for the file any more."""


def create_app(model: SlimModel, name: str = "", *, limits: Limits | None = None, hosts: Iterable[str] = ()) -> FastAPI:
    """An application that shows one model. It keeps nothing of what it is sent, in no file and no log.

    Args:
        model: a causal network.
        name: of its weights, for the page.
        limits: on files and live sessions.
        hosts: names besides ``localhost`` and addresses under which the server is known.

    Raises:
        ValueError: for a model that cannot stream.
    """
    if not model.causal or model.config.level == "signal":
        raise ValueError("the model hears the whole signal before it puts anything out: expected a causal one")
    bounds = Limits() if limits is None else limits
    costs = profile(model)
    app = FastAPI(title="SlimSE", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, names=hosts)
    static = resources.files("slimse.serve") / "static"
    files, sessions = _Places(bounds.jobs), _Places(bounds.sessions)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(str(static / "index.html"))

    @app.get("/static/noisy.flac")
    def example() -> FileResponse:
        return FileResponse(bundled_clip(), media_type="audio/flac")

    # Behind the route above, which has a name below it.
    app.mount("/static", StaticFiles(directory=str(static)), name="static")

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return _facts(model, name, costs, bounds)

    @app.post("/api/enhance")
    async def enhance(request: Request, uf: float | None = None, budget: float | None = None) -> Response:
        if not files.take():
            return _problem(503, f"{bounds.jobs} files are being enhanced: try again in a moment")
        try:
            return await _enhanced(request, model, costs, (uf, budget), bounds)
        finally:
            files.give_back()

    @app.websocket("/api/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        if not sessions.take():
            await socket.close(_TOO_MANY, f"{bounds.sessions} live sessions are open: try again later")
            return
        try:
            await _talk(socket, model, bounds)
        except ValueError as error:
            with suppress(RuntimeError):
                await socket.close(_BAD_DATA, str(error)[:120])
        except WebSocketDisconnect:
            pass
        finally:
            sessions.give_back()

    return app


class _Places:
    """So many at once. Used by one thread alone."""

    def __init__(self, count: int) -> None:
        self._free = count

    def take(self) -> bool:
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    def give_back(self) -> None:
        self._free += 1


def _facts(model: SlimModel, name: str, costs: ModelProfile, limits: Limits) -> dict[str, Any]:
    """What the page shows of the model and its limits."""
    return {
        "name": name,
        "version": __version__,
        "ufs": list(model.ufs),
        "router": model.router is not None,
        "latency_ms": costs.latency_ms,
        "macs_per_sample": [width.macs_per_sample for width in costs.widths],
        "frame_ms": 1000 * model.geometry.hop / model.sample_rate,
        "megabytes": limits.megabytes,
        "seconds": limits.seconds,
    }


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"detail": message}, status)


async def _enhanced(
    request: Request, model: SlimModel, costs: ModelProfile, chosen: tuple[float | None, float | None], limits: Limits
) -> Response:
    """The answer to a request that brings a file, at the UF or budget of ``chosen``."""

    def work(check: Callable[[], None]) -> EnhancedSound:
        uf, budget = chosen
        return enhance_sound(data, model, costs, uf, budget=budget, limits=limits, check=check)

    try:
        async with asyncio.timeout(limits.upload_seconds):
            data = await _body(request, limits)
        return _multipart(await _watched(request, work, limits.work_seconds))
    except TooLargeError as error:
        return _problem(413, str(error))
    except ValueError as error:
        return _problem(422, str(error))
    except TimeoutError:
        return _problem(408, f"the file did not come within {limits.upload_seconds:g} s")
    except _TooLateError:
        return _problem(503, f"enhancing took more than {limits.work_seconds:g} s: try a shorter file")
    except _GoneError:
        return _problem(499, "nobody waits for it any more")


async def _body(request: Request, limits: Limits) -> bytes:
    """Read a request without more memory than the limit, and without a temporary file.

    Raises:
        TooLargeError: for more.
    """
    promised = request.headers.get("content-length", "0")
    data = bytearray()
    if not promised.isdecimal() or int(promised) > limits.size:
        raise TooLargeError(f"the file has more than {limits.megabytes:g} MB")
    async for chunk in request.stream():
        data += chunk
        if len(data) > limits.size:
            raise TooLargeError(f"the file has more than {limits.megabytes:g} MB")
    return bytes(data)


async def _watched(
    request: Request, work: Callable[[Callable[[], None]], EnhancedSound], seconds: float
) -> EnhancedSound:
    """Run ``work`` in a thread; it stops when nobody waits for it any more, or its time is over."""
    deadline, gone = time.monotonic() + seconds, threading.Event()

    def check() -> None:
        if gone.is_set():
            raise _GoneError
        if time.monotonic() > deadline:
            raise _TooLateError

    task = asyncio.create_task(asyncio.to_thread(work, check))
    while not task.done():
        await asyncio.wait([task], timeout=_POLL_SECONDS)
        if not task.done() and await request.is_disconnected():
            gone.set()
    return await task


def _multipart(enhanced: EnhancedSound) -> Response:
    """Report and sound as one form, which browsers can read (`Response.formData`)."""
    mark = secrets.token_hex(16)
    parts = (
        ('name="report"', "application/json", json.dumps(enhanced.report).encode()),
        ('name="sound"; filename="enhanced.wav"', "audio/wav", enhanced.wav),
    )
    body = b"".join(
        f"--{mark}\r\nContent-Disposition: form-data; {names}\r\nContent-Type: {kind}\r\n\r\n".encode() + data + b"\r\n"
        for names, kind, data in parts
    )
    return Response(body + f"--{mark}--\r\n".encode(), media_type=f"multipart/form-data; boundary={mark}")


async def _talk(socket: WebSocket, model: SlimModel, limits: Limits) -> None:
    """A live session, until one of both sides ends it.

    Raises:
        ValueError: for what cannot be understood.
        WebSocketDisconnect: if the page has gone.
    """
    session: LiveSession | None = None
    start = time.monotonic()
    while True:
        try:
            async with asyncio.timeout(limits.idle_seconds):
                message = await socket.receive()
        except TimeoutError:
            await socket.close(_REFUSED, f"nothing came for {limits.idle_seconds:g} s")
            return
        if message["type"] == "websocket.disconnect":
            return
        passed = time.monotonic() - start
        if passed > limits.session_seconds:
            await socket.close(1000, f"a session lasts {limits.session_seconds / 60:g} minutes: start another one")
            return
        text, data = message.get("text"), message.get("bytes")
        if session is None:
            if text is None:
                raise ValueError("the first message is no text: expected settings")
            session = LiveSession(model, text)
            await socket.send_text(session.welcome())
        elif data is None:
            session.change(text or "")
        else:
            # Not in the event loop, where one session would hold up all others.
            out, report = await asyncio.to_thread(session.feed, data)
            await socket.send_bytes(out)
            if report is not None:
                await socket.send_text(report)
            if session.seconds > time.monotonic() - start + limits.ahead_seconds:
                await socket.close(_REFUSED, "sound comes faster than it sounds")
                return
