"""Exported files against the network that they came from."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model import SlimModel
from .streamer import OnnxStreamer, open_session

FRAMES = 1000
"""Frames that a file and the network are compared over, at each UF."""
LIMIT = 1e-4
"""Largest relative error of a file whose weights are the network's."""
INT8_LIMIT = 0.5
"""The same where weights and inputs of products are rounded to 8 bits: the file does what it should, roughly."""
_BUDGET = 0.3


def check_file(path: Path, model: SlimModel, precision: str) -> float:
    """Run an ONNX file and its network side by side, over a signal of `FRAMES` frames and a part of one.

    Args:
        path: file to check.
        model: that it came from.
        precision: of its weights.

    Returns:
        The largest relative error of all UFs, and of the router if the file has it.

    Raises:
        ValueError: if that is above `LIMIT`, or `INT8_LIMIT`.
    """
    model = _rounded(model) if precision == "float16" else model
    noisy = test_signal(FRAMES * model.geometry.hop + model.geometry.hop // 3)
    session = open_session(path)
    metadata = session.get_modelmeta().custom_metadata_map
    several = "uf" in {entry.name for entry in session.get_inputs()}

    def run(uf: float | None, budget: float | None) -> NDArray[np.float32]:
        if metadata["kind"] == "stream":
            streamer = OnnxStreamer(session, uf if several else None, budget=budget)
            # Chunks of a prime length: calls and chunks never end together.
            parts = [streamer.feed(noisy[start : start + 4999]) for start in range(0, len(noisy), 4999)]
            return np.concatenate([*parts, streamer.flush()])
        choice = {"uf": np.array([uf or 0], np.float32)} if several else {}
        choice |= {"budget": np.array([budget or 1], np.float32)} if metadata["router"] == "1" else {}
        return session.run(["enhanced"], {"noisy": noisy[None], **choice})[0][0]

    signal, errors = torch.from_numpy(noisy)[None, None], {}
    with torch.no_grad():
        for uf in (float(uf) for uf in metadata["ufs"].split(",")):
            errors[f"UF {uf:g}"] = relative_error(run(uf, None), model(signal, uf))
        if metadata["router"] == "1":
            ufs = model.route(signal, _BUDGET)
            errors[f"budget {_BUDGET:g}"] = relative_error(run(None, _BUDGET), model(signal, ufs))
    worst = max(errors, key=lambda name: errors[name])
    limit = INT8_LIMIT if precision == "int8" else LIMIT
    check_error(errors[worst], limit, worst)
    return errors[worst]


def check_error(error: float, limit: float, case: str) -> None:
    """Raise a `ValueError` for a relative error that is not below ``limit``."""
    if not error < limit:
        raise ValueError(
            f"{case}: relative error {error:.1e} against the network: expected below {limit:g}; not written"
        )


def test_signal(samples: int) -> NDArray[np.float32]:
    """Noise that swells and fades, and pauses, so all levels that a network sees: ``[samples]``, always the same."""
    generator = np.random.default_rng(0)
    # Sound from the first sample on, or a short check would compare silence with silence.
    swell = np.cos(np.arange(samples) / 3000) ** 2 * (np.arange(samples) % 40_000 < 32_000)
    return (0.3 * swell * generator.standard_normal(samples)).astype(np.float32)


def relative_error(actual: NDArray[np.float32], expected: Tensor) -> float:
    """Norm of the difference over the norm of ``expected``."""
    reference = expected.flatten().double().numpy()
    if actual.shape != reference.shape:
        return float("inf")
    return float(np.linalg.norm(actual - reference) / max(float(np.linalg.norm(reference)), 1e-12))


def _rounded(model: SlimModel) -> SlimModel:
    """A copy with the weights that a float16 file holds: matrices of the network are rounded, the rest is not."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight" in name and not name.startswith("router."):
                parameter.copy_(parameter.half().float())
    return model
