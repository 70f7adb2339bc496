"""Sound through standard input and output: WAV or raw samples, as they come."""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..live import LiveStreamer
from ..model import SlimModel

BLOCK_SECONDS = 0.01
_UNKNOWN = 2**32 - 1
"""Size in the header of a WAV stream whose end its writer did not know."""
_LARGEST_CHUNK = 2**20
"""Bytes of a chunk before the samples: more is no header."""
_EXTENSIBLE = 0xFFFE
_TYPES = {(1, 16): "int16", (3, 32): "float32"}
RAW_TYPES = {"s16le": "int16", "f32le": "float32"}
"""Names of raw samples, as ffmpeg has them, and the dtype of each."""


class PipeFormat(NamedTuple):
    """What a stream of samples is."""

    sample_rate: int
    channels: int
    dtype: str
    """``"int16"`` or ``"float32"``, little-endian."""
    wav: bool
    """Whether it has a header."""
    size: int | None = None
    """Bytes of samples, if the header says."""


def read_header(stream: BinaryIO) -> PipeFormat:
    """Read the header of a WAV stream, up to its first sample.

    Raises:
        ValueError: for another kind of stream, or samples of another kind than 16-bit integers and 32-bit floats.
    """
    start = stream.read(12)
    if len(start) < 12 or start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
        raise ValueError(f"standard input starts with {start[:4]!r}: expected a WAV stream, or --raw with --rate")
    found: PipeFormat | None = None
    while True:
        head = stream.read(8)
        if len(head) < 8:
            raise ValueError("standard input ends in the header of a WAV stream")
        name, size = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"data":
            break
        body = stream.read(size + size % 2) if size <= _LARGEST_CHUNK else b""
        if len(body) < size:
            raise ValueError(f"standard input has a damaged WAV header: chunk {name!r} of {size} bytes")
        if name == b"fmt ":
            found = _parse_format(body)
    if found is None:
        raise ValueError("standard input has a WAV header without a format")
    return found._replace(size=None if size in (0, _UNKNOWN) else size)


def _parse_format(body: bytes) -> PipeFormat:
    if len(body) < 16:
        raise ValueError(f"standard input has a WAV format of {len(body)} bytes: expected 16 or more")
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if tag == _EXTENSIBLE and len(body) >= 26:
        tag = struct.unpack("<H", body[24:26])[0]
    if (tag, bits) not in _TYPES:
        raise ValueError(
            f"standard input holds samples of {bits} bits (WAV format {tag}): expected 16-bit integers or 32-bit floats"
        )
    return PipeFormat(rate, channels, _TYPES[tag, bits], wav=True)


def header(sound: PipeFormat) -> bytes:
    """The header of a WAV stream."""
    width = np.dtype(sound.dtype).itemsize
    tag = 1 if sound.dtype == "int16" else 3
    bytes_per_sample = sound.channels * width
    size = _UNKNOWN if sound.size is None else sound.size
    rest = (tag, sound.channels, sound.sample_rate, sound.sample_rate * bytes_per_sample, bytes_per_sample, 8 * width)
    return b"".join(
        [
            b"RIFF" + struct.pack("<I", min(36 + size, _UNKNOWN)) + b"WAVE",
            b"fmt " + struct.pack("<IHHIIHH", 16, *rest),
            b"data" + struct.pack("<I", size),
        ]
    )


def enhance_pipe(
    source: BinaryIO,
    target: BinaryIO,
    model: SlimModel,
    uf: float | None = None,
    *,
    budget: float | None = None,
    strength: float = 1.0,
    raw: PipeFormat | None = None,
) -> int:
    """Enhance a stream of samples as they come, block by block of 10 ms.

    The output has the format and the length of the input and is aligned with it: it begins once the delay of a
    `LiveStreamer` has passed, and each block is written at once.

    Args:
        source: WAV, or raw samples.
        target: where the same kind is written.
        model: as of `LiveStreamer`, like ``uf``, ``budget`` and ``strength``.
        uf: see there.
        budget: see there.
        strength: see there.
        raw: format of raw samples; None reads a WAV header.

    Returns:
        Number of samples per channel.

    Raises:
        ValueError: for a header that cannot be read, a rate out of range, or a sample that is not finite.
    """
    sound = read_header(source) if raw is None else raw
    rate, channels = sound.sample_rate, sound.channels
    options = {"sample_rate": rate, "channels": channels, "dtype": sound.dtype, "strength": strength}
    streamer = LiveStreamer(model, uf, budget=budget, **options)  # type: ignore[arg-type]
    if sound.wav:
        target.write(header(sound))
    stored = np.dtype(sound.dtype).newbyteorder("<")
    step = channels * stored.itemsize
    block, left = round(BLOCK_SECONDS * rate) * step, sound.size
    late, count = streamer.delay, 0

    def write(samples: NDArray[np.generic]) -> None:
        nonlocal late
        target.write(np.ascontiguousarray(samples[:, late:].T, stored).tobytes())
        target.flush()
        late = max(0, late - samples.shape[1])

    rest = b""
    while data := source.read(block if left is None else min(block, left)):
        left = None if left is None else left - len(data)
        data = rest + data
        whole = len(data) // step * step
        rest = data[whole:]
        samples = np.frombuffer(data[:whole], stored).reshape(-1, channels)
        count += len(samples)
        write(streamer.feed(np.ascontiguousarray(samples.T, sound.dtype)))
    if count:
        write(streamer.flush())
    return count
