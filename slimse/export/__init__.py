"""Networks as files that other programs run: ONNX models and `torch.export` programs."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from ..atomic import written_whole
from ..model import SlimModel
from ..networks import SlimDemucsConfig

SUFFIXES = (".onnx", ".pt2")


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    path: Path
    ufs: tuple[float, ...]
    precision: str
    size: int
    """Bytes."""
    frames: int
    """That it was compared with the network over, at each UF."""
    error: float
    """Largest relative error."""
    latency_ms: float | None
    """Algorithmic latency of a stream; None for whole signals."""

    def sentence(self) -> str:
        """All of it in one line."""
        ufs = ", ".join(f"{uf:g}" for uf in self.ufs)
        latency = "whole signals" if self.latency_ms is None else f"latency {self.latency_ms:.1f} ms"
        return (
            f"{self.path}: UF {ufs}, {self.precision}, {self.size / 1e6:.1f} MB, {latency}; over {self.frames:,} frames"
            f" the largest relative error against PyTorch is {self.error:.1e}"
        )


def export(
    model: SlimModel,
    path: str | os.PathLike[str],
    uf: float | None = None,
    *,
    frames: int = 1,
    whole: bool = False,
    precision: str = "float32",
) -> Exported:
    """Write a network as one file, after a comparison with the network itself. The file appears whole or not at all.

    Args:
        model: a causal network with grouped GRUs.
        path: file to write: ``.onnx``, or ``.pt2`` for `torch.export`.
        uf: one of its UFs; None for all, from which the file's inputs choose.
        frames: per call of a stream.
        whole: take whole signals instead of a stream's next samples.
        precision: of the stored weights: ``"float32"``, ``"float16"`` or ``"int8"``.

    Raises:
        ValueError: for a UF, a precision, a number of frames or a suffix that there is not, a network that cannot be
            exported, or a file that differs from the network.
        ModuleNotFoundError: for ``.onnx`` without the extra ``slimse[onnx]``.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in one of {SUFFIXES}")
    _check(model, frames)
    # Compared with the layers, in float32 on the CPU, whatever the caller's model runs on.
    reference = SlimModel(model.config, backend="reference").eval().requires_grad_(False)
    reference.load_state_dict(model.state_dict())
    model = reference
    ufs = tuple(model.ufs) if uf is None else (model.ufs.validate(uf),)
    if path.suffix == ".pt2":
        if len(ufs) > 1 or whole or frames > 1 or precision != "float32":
            raise ValueError(f"{path}: expected one UF, one frame per call, a stream and float32 for a .pt2 file")
        from .check import FRAMES
        from .program import write_program

        with written_whole(path) as part:
            error = write_program(part, model, ufs[0])
        latency = 1000 * model.geometry.latency / model.sample_rate
        return Exported(path, ufs, precision, path.stat().st_size, FRAMES, error, latency)
    return _export_onnx(model, path, ufs, frames, whole, precision)


def _export_onnx(
    model: SlimModel, path: Path, ufs: tuple[float, ...], frames: int, whole: bool, precision: str
) -> Exported:
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed: pip install 'slimse[onnx]'")
    from .builder import PRECISIONS
    from .check import FRAMES, check_file
    from .graphs import WHOLE_FRAMES, Graphs
    from .notes import notes

    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: expected one of {PRECISIONS}")
    if len(ufs) > 1 and frames > 1 and model.router is not None:
        raise ValueError(f"frames = {frames} with all UFs: expected 1, as the router chooses for every frame")
    together = WHOLE_FRAMES if whole and len(ufs) == 1 else frames
    graphs = Graphs(model, ufs, together, precision)
    kind = "whole" if whole else "stream"
    made = (graphs.whole if whole else graphs.streaming)(notes(graphs, model, kind, precision))
    with written_whole(path) as part:
        part.write_bytes(made.SerializeToString())
        error = check_file(part, model, precision)
    latency = None if whole else 1000 * graphs.geometry.latency / model.sample_rate
    return Exported(path, ufs, precision, path.stat().st_size, FRAMES, error, latency)


def _check(model: SlimModel, frames: int) -> None:
    """Make sure that a network can be exported.

    Raises:
        ValueError: if not; the message says what it is, and what was expected.
    """
    network, level = model.config.network, model.config.level
    if not isinstance(network, SlimDemucsConfig):
        raise ValueError(f"network of {type(network).__name__}: cannot be exported; expected a SlimDemucs")
    if network.rnn != "gru" or level == "signal":
        raise ValueError(
            f"rnn = {network.rnn!r}, level = {level!r}: cannot be exported; expected rnn = 'gru', and level = 'running'"
            " or 'none'"
        )
    if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= 1000:
        raise ValueError(f"frames = {frames!r}: expected an integer from 1 to 1000")
