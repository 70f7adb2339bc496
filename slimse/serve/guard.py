"""Who may talk to the server: pages that it served itself, under a name that is its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuse requests from other sites, before the application sees them.

    - The ``Host`` must be an IP address, ``localhost`` or one of ``names``. A name of somebody else that was made to
      lead here (DNS rebinding) is none of them.
    - What changes or costs something (all but GET and HEAD, and WebSockets) must come from a page of this server, if
      it comes from a page at all: browsers say so in ``Origin``.

    Args:
        app: what is guarded.
        names: host names under which the server is known.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        status, reason = self._refusal(scope)
        if status and scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = PlainTextResponse(f"{reason}\n", status) if status else self._app
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str]:
        """HTTP status and reason; 0 if there is none."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not self._is_own(host):
            return 421, f"Host {host!r}: expected an address, localhost, or a name given by --allow-host"
        origin = headers.get("origin")
        harmless = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if origin is None or harmless:
            return 0, ""
        scheme, _, source = origin.lower().partition("://")
        if scheme not in ("http", "https") or source != host:
            return 403, f"Origin {origin!r}: expected a page of this server"
        return 0, ""

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
