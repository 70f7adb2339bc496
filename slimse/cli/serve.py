"""``slimse serve``."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from ..hub import DEFAULT
from .loading import make_ready
from .terminal import note, say


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on. Default: this machine alone can reach it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65_535)] = 8000,
    weights: Annotated[str, typer.Option(help="Bundled weights, or a .safetensors file.")] = DEFAULT,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name of this machine that browsers may use; as often as needed.")
    ] = None,
    megabytes: Annotated[float, typer.Option(help="Largest file.")] = 50,
    seconds: Annotated[float, typer.Option(help="Longest file.")] = 300,
    sessions: Annotated[int, typer.Option(help="Live sessions at once.", min=1)] = 4,
) -> None:
    """Show a page in the browser: files, recordings, microphone."""
    for package in ("fastapi", "uvicorn", "websockets"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed: pip install 'slimse[serve]'", name=package)
    from ..checkpoint import load
    from ..serve.app import create_app
    from ..serve.limits import Limits
    from ..serve.server import is_loopback, run_server

    limits = Limits(megabytes=megabytes, seconds=seconds, sessions=sessions)
    app = create_app(make_ready(load(weights)), weights, limits=limits, hosts=allow_host or ())
    if not is_loopback(host):
        say(
            f"{host} can be reached from other machines: whoever reaches it can use the page, there is no password, "
            "and sound travels unencrypted. Browsers give the microphone only to https pages and to localhost"
        )
    run_server(app, host, port, lambda address: note(f"open {address} in a browser; Ctrl-C ends"))
