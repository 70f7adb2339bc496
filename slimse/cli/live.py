"""``slimse live``."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .loading import make_ready

if TYPE_CHECKING:
    from ..model import SlimModel


class Raw(StrEnum):
    """Samples without a header, as ffmpeg names them."""

    s16le = "s16le"
    f32le = "f32le"


def live(
    source: Annotated[
        str | None, typer.Argument(metavar="[-]", help="-: standard input to output. Default: sound devices.")
    ] = None,
    uf: Annotated[float | None, typer.Option(help="Width of the network. Default: 1.")] = None,
    budget: Annotated[float | None, typer.Option(help="Mean width; the router chooses that of every 16 ms.")] = None,
    strength: Annotated[float, typer.Option(help="Share of the enhanced sound, 0 to 1.")] = 1.0,
    raw: Annotated[Raw | None, typer.Option(help="Raw samples of this type; else a WAV stream is expected.")] = None,
    rate: Annotated[int, typer.Option(help="Of raw samples and of devices, Hz.")] = 16_000,
    channels: Annotated[int, typer.Option(help="Of raw samples.", min=1)] = 1,
    microphone: Annotated[str | None, typer.Option(help="Input device: number or part of a name.")] = None,
    output: Annotated[str | None, typer.Option(help="Output device, such as a virtual cable.")] = None,
    devices: Annotated[bool, typer.Option("--devices", help="List sound devices and end.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="Name of bundled weights, or a .safetensors file. Default: the bundled ones.")
    ] = None,
) -> None:
    """Enhance sound as it comes, from a microphone or through a pipe."""
    if source not in (None, "-"):
        raise ValueError(f"source {source!r}: expected -, standard input, or none for sound devices")
    if uf is not None and budget is not None:
        raise ValueError("--uf and --budget exclude each other: expected one of them at most")
    if source == "-":
        from ..audio.pipe import RAW_TYPES, PipeFormat, enhance_pipe

        sound = None if raw is None else PipeFormat(rate, channels, RAW_TYPES[raw], wav=False)
        model = _load(weights)
        enhance_pipe(sys.stdin.buffer, sys.stdout.buffer, model, uf, budget=budget, strength=strength, raw=sound)
        return
    from .devices import Session, audio_module, run_session, terminal_keys

    sounddevice = audio_module()
    if devices:
        print(sounddevice.query_devices())
        return
    from ..live import LiveStreamer

    model = _load(weights)
    block = max(1, rate // 100)
    streamer = LiveStreamer(
        model, uf, budget=budget, sample_rate=rate, block=block, dtype="int16", strength=strength, max_load=0.8
    )
    with terminal_keys() as keys:
        run_session(Session(streamer, budget), sounddevice, (_device(microphone), _device(output)), keys)


def _load(weights: str | None) -> SlimModel:
    from ..checkpoint import load

    return make_ready(load() if weights is None else load(weights))


def _device(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdigit() else name
