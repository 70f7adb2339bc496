"""What an exported file says of itself: metadata as sherpa-onnx reads it, strings and lists of numbers with commas."""

from __future__ import annotations

from ..model import SlimModel
from .graphs import Graphs


def notes(graphs: Graphs, model: SlimModel, kind: str, precision: str) -> dict[str, str]:
    """Metadata of a model.

    Args:
        graphs: that make it.
        model: it is of.
        kind: ``"stream"`` or ``"whole"``.
        precision: of its weights.
    """
    from .. import __version__

    g = graphs.geometry
    values = {
        "model_type": "slimse",
        "version": "1",
        "comment": f"SlimSE {__version__}, speech enhancement, arXiv 2507.04879",
        "kind": kind,
        "precision": precision,
        "sample_rate": model.sample_rate,
        "hop_length": g.hop,
        "window_length": model.geometry.receptive,
        "frames_per_call": g.frames,
        "ufs": ",".join(f"{uf:g}" for uf in graphs.ufs),
        "router": int(graphs.routed),
    }
    if kind == "stream":
        values |= {"latency": g.latency, "lead": g.lead, "delay": g.delay, "early_frames": g.early}
        values |= {f"{name}_shape": f"1,{size}" for name, size in graphs.sizes.items()}
    return {name: str(value) for name, value in values.items()}
