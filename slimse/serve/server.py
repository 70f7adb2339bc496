"""Listening: a socket, and uvicorn on it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

_LARGEST_MESSAGE = 2**19
"""Bytes of a message of a WebSocket."""
_PATIENCE = 2
"""Seconds that open connections have when the server ends."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run_server(app: FastAPI, host: str, port: int, listening: Callable[[str], object] = lambda address: None) -> None:
    """Serve until a signal comes.

    Args:
        app: what is served.
        host: address or name of this machine.
        port: 0 for any free one.
        listening: called with the address of the page, once it can be reached.

    Raises:
        ValueError: if there is no listening at ``host`` and ``port``.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"host {host}, port {port}: cannot listen there: {reason}") from error
    with listener:
        name = f"[{host}]" if ":" in host else host
        listening(f"http://{name}:{listener.getsockname()[1]}/")
        # No log of requests: what visitors do is nobody's business.
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws_max_size=_LARGEST_MESSAGE,
            timeout_graceful_shutdown=_PATIENCE,
        )
        uvicorn.Server(config).run([listener])
