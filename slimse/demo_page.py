"""The page of a demo: one file to open in a browser, with players, spectrograms, the UF of every frame, and cost."""

from __future__ import annotations

import base64
import html
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .demo import DemoRow

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem } p { margin: .3rem 0 } .cost { color: #777 }
audio { width: 100%; height: 2.2rem } .picture { position: relative; height: 9rem }
.picture img, .picture svg { position: absolute; width: 100%; height: 100%; border-radius: .2rem }
.picture path { fill: none; stroke: #fff; stroke-width: 1.5; vector-effect: non-scaling-stroke }
.axis { display: flex; justify-content: space-between; color: #777; font-size: .8rem }
"""
# Of one player the position goes to the next, so that the same word can be heard twice.
PLAYER_SCRIPT = """
const players = [...document.querySelectorAll('audio')]; let last = null
players.forEach(player => player.addEventListener('play', () => {
  if (last && last !== player) { player.currentTime = last.currentTime; last.pause() }
  last = player
}))
"""
_COLOURS = np.array([(0, 0, 4), (60, 15, 112), (143, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191)])


def demo_page(noisy: Path, rows: Sequence[DemoRow], title: str, seconds: float) -> str:
    """HTML with everything in it; it loads nothing.

    Args:
        noisy: audio file.
        rows: of the enhanced files, each as long as ``noisy``.
        title: usually the name of the noisy file.
        seconds: of the sound to put into the page, from its start.
    """
    from .demo import colour_range, first_samples, spectrogram

    info = soundfile.info(noisy)
    shown = min(info.frames, round(seconds * info.samplerate))
    length = shown / info.samplerate
    levels = [spectrogram(first_samples(path, shown), info.samplerate) for path in (noisy, *(row.path for row in rows))]
    low, high = colour_range(levels[0])
    ufs = [row.uf for row in rows if row.budget is None]
    parts = [_section("Noisy", "", noisy, shown, _png(levels[0], low, high), "", length)]
    for row, level in zip(rows, levels[1:], strict=True):
        name = f"UF {row.uf:g}" if row.budget is None else f"Router, budget {row.budget:g}"
        cost = (
            f"{row.macs_per_sample:,.0f} multiply-accumulates per sample, {row.share:.0%} of UF {ufs[-1]:g}; "
            f"took {row.seconds:.2f} s"
        )
        trace = ""
        if row.budget is not None:
            cost = f"average UF {row.uf:.2f}; {cost}. White line: the UF of each frame, {ufs[0]:g} to {ufs[-1]:g}"
            frames = max(1, round(len(row.chosen) * length * info.samplerate / info.frames))
            trace = _trace(row.chosen[:frames], ufs)
        parts.append(_section(name, cost, row.path, shown, _png(level, low, high), trace, length))
    name = html.escape(title)
    cut = f" The page holds the first {length:.0f} s." if shown < info.frames else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>SlimSE: {name}</title><style>{_STYLE}</style>\n<h1>SlimSE: {name}</h1>\n"
        "<p>The utilization factor (UF) is the share of the network's channels that run. Start a player while another "
        f"one plays: it goes on at the same place.{cut}</p>\n{''.join(parts)}<script>{PLAYER_SCRIPT}</script></html>\n"
    )


def _section(name: str, cost: str, sound: Path, samples: int, png: bytes, trace: str, length: float) -> str:
    audio, rate = soundfile.read(sound, frames=samples, dtype="float32", always_2d=True)
    picture = f'<img alt="spectrogram: {html.escape(name)}" src="data:image/png;base64,{_text(png)}">'
    return (
        f'<h2>{html.escape(name)}</h2><p class="cost">{html.escape(cost)}</p>\n'
        f"{player(audio, rate, name)}\n"
        f'<div class="picture">{picture}{trace}</div>'
        f'<div class="axis"><span>0 s</span><span>0 to {rate / 2000:g} kHz</span><span>{length:.1f} s</span></div>\n'
    )


def player(audio: NDArray[np.float32], rate: int, name: str) -> str:
    """An audio element that holds ``[n]`` or ``[n, channels]`` samples as a WAV of 16 bits."""
    wav = io.BytesIO()
    soundfile.write(wav, audio, rate, format="WAV", subtype="PCM_16")
    source = f"data:audio/wav;base64,{_text(wav.getvalue())}"
    return f'<audio controls preload="auto" aria-label="{html.escape(name)}" src="{source}"></audio>'


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _trace(chosen: NDArray[np.float32], ufs: Sequence[float]) -> str:
    """The UF of every frame as a line over the picture, in octaves."""
    octaves = np.log2(np.asarray(chosen) / ufs[0]) / max(np.log2(ufs[-1] / ufs[0]), 1e-9)
    heights = 96 - 92 * octaves
    path = f"M0 {heights[0]:.1f}" + "".join(f"H{index} V{height:.1f}" for index, height in enumerate(heights))
    box = f'viewBox="0 0 {len(heights)} 100" preserveAspectRatio="none"'
    return f'<svg {box}><path d="{path}H{len(heights)}"/></svg>'


def _png(level: NDArray[np.float32], low: float, high: float) -> bytes:
    """A picture of levels ``[frequencies, times]`` in dB, low frequencies below: PNG needs no library."""
    place = np.clip((level[::-1] - low) / (high - low), 0, 1) * (len(_COLOURS) - 1)
    knots = np.arange(len(_COLOURS))
    pixels = np.stack([np.interp(place, knots, channel) for channel in _COLOURS.T], axis=2).astype(np.uint8)
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
