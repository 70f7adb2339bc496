"""A stream through an exported model with NumPy and ONNX Runtime alone: no PyTorch, nothing of SlimSE.

    slimse export --uf 0.25 -o m.onnx
    python examples/onnx_stream.py m.onnx noisy.wav enhanced.wav

It reads and writes 16-bit mono WAV files at the model's sample rate. The loop is what a port to another language does.
"""

import sys
import wave

import numpy as np
import onnxruntime


def read(path: str, rate: int) -> np.ndarray:
    """Samples ``[n]`` from -1 to 1."""
    with wave.open(path) as file:
        found = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
        if found != (rate, 1, 16):
            raise SystemExit(f"{path}: {found} Hz, channels and bits: expected ({rate}, 1, 16)")
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def enhance(session: onnxruntime.InferenceSession, noisy: np.ndarray) -> np.ndarray:
    """Call by call, as if the samples came from a microphone."""
    about = session.get_modelmeta().custom_metadata_map
    call = int(about["hop_length"]) * int(about["frames_per_call"])
    inputs = {entry.name: entry.shape for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    # A stream begins with zeros: its states, and some samples before the signal.
    states = {name: np.zeros(shape, np.float32) for name, shape in inputs.items() if name.startswith("state_")}
    waiting = np.concatenate([np.zeros(int(about["lead"]), np.float32), noisy])
    # A model of several UFs takes one of them, or 0 and a budget for its router.
    options = {"uf": np.float32([0.25])} if "uf" in inputs else {}
    options |= {"budget": np.float32([1])} if "budget" in inputs else {}
    ready = []
    while True:
        samples, waiting = waiting[:call], waiting[call:]
        # -1 while the signal goes on; in the last call, how many of its samples there are. It gives all that is left.
        end = len(samples) if len(samples) < call else -1
        samples = np.pad(samples, (0, call - len(samples)))[None]
        results = session.run(None, {"samples": samples, "end": np.int32([end]), **options, **states})
        named = dict(zip(outputs, results, strict=True))
        ready.append(named["enhanced"][0])
        states = {name: named[f"new_{name}"] for name in states}
        if end >= 0:
            break
    # The first outputs come before the signal.
    return np.concatenate(ready)[int(about["delay"]) :][: len(noisy)]


def main() -> None:
    """Enhance one file."""
    if len(sys.argv) != 4:
        raise SystemExit("usage: python onnx_stream.py MODEL.onnx NOISY.wav ENHANCED.wav")
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    rate = int(session.get_modelmeta().custom_metadata_map["sample_rate"])
    enhanced = enhance(session, read(sys.argv[2], rate))
    with wave.open(sys.argv[3], "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((32768 * enhanced).clip(-32768, 32767).round().astype(np.int16).tobytes())


if __name__ == "__main__":
    main()
