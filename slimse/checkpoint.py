"""Saving and loading of weights: safetensors with the model's configuration in the header."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from .models import SlimDemucs, SlimDemucsConfig

DEFAULT = "paper"
"""Name of the bundled weights that `load` returns."""


def save(
    model: SlimDemucs,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write weights and configuration into one safetensors file, in PyTorch's layouts.

    The file appears whole or not at all.

    Args:
        model: what to save.
        path: file to write.
        dtype: dtype of the stored matrices, None for the model's own. Vectors, which weigh little, keep their own.
            `load` gives float32 whatever it is.
        notes: anything JSON can hold, kept in the header beside the configuration.
    """
    path = Path(path)
    tensors = {
        name: tensor.to(dtype=dtype if tensor.ndim > 1 else None).contiguous()
        for name, tensor in model.state_dict().items()
    }
    metadata = {"config": json.dumps(model.config.to_dict()), "notes": json.dumps(dict(notes or {}))}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        # Written here and not by safetensors, which makes files that only their owner can read.
        temporary.write_bytes(serialise(tensors, metadata))
        os.replace(temporary, path)


def load(
    weights: str | os.PathLike[str] = DEFAULT,
    *,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    precision: str = "ieee",
) -> SlimDemucs:
    """Load a model for inference, in float32.

    Args:
        weights: name of bundled weights, or path of a file written by `save`.
        device: where to put it.
        backend: see `SlimDemucs`.
        precision: see `SlimDemucs`.

    Raises:
        FileNotFoundError: if there is no such file or bundled name.
        ValueError: if the file is not a SlimSE model, or there is no such backend or precision.
    """
    path = Path(weights)
    if not path.suffix:
        bundled = resources.files("slimse") / "weights" / f"{weights}.safetensors"
        path = Path(str(bundled))
        if not path.is_file():
            names = sorted(f.name.removesuffix(".safetensors") for f in path.parent.glob("*.safetensors"))
            raise FileNotFoundError(
                f"no bundled weights {str(weights)!r}: expected one of {names} or a .safetensors file"
            )
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if "config" not in metadata:
        raise ValueError(f"{path} holds no SlimSE configuration; for original DEMUCS weights use slimse.load_denoiser")
    config = SlimDemucsConfig.from_dict(json.loads(metadata["config"]))
    model = SlimDemucs(config, backend=backend, precision=precision)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False).to(device)
