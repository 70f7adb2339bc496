"""Saving and loading of weights: safetensors with the model's configuration in the header."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from .atomic import written_whole
from .config import ModelConfig
from .hub import DEFAULT, find_weights
from .model import SlimModel
from .networks.base import config_class

_DTYPES = ("F16", "BF16", "F32", "F64")


def save(
    model: SlimModel,
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
    with written_whole(path) as part:
        # Written here and not by safetensors, which makes files that only their owner can read.
        part.write_bytes(serialise(tensors, metadata))


def load(
    weights: str | os.PathLike[str] = DEFAULT,
    *,
    device: str | torch.device = "cpu",
    runtime: str = "auto",
    backend: str = "auto",
    precision: str = "ieee",
    trainable: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> SlimModel:
    """Load a model in float32, for inference unless it is to be trained.

    Args:
        weights: name of bundled weights, path of a file written by `save`, a folder that holds one such file, as
            a training run leaves it, or ``OWNER/NAME`` of a repository on the Hugging Face hub (``slimse[hub]``). A
            bundled name is never looked for in the working folder: for a folder of that name write ``./name``.
        device: where to put it.
        runtime: see `SlimModel`.
        backend: see `SlimModel`.
        precision: see `SlimModel`.
        trainable: give a model in training mode whose parameters take gradients, for a training loop of your own.
        revision: of a repository: branch, tag or, best, the hash of a commit; ``OWNER/NAME@REVISION`` says the same.
        cache_dir: where files of the hub are kept.
        local_files_only: take a repository from there, without a connection.

    Raises:
        FileNotFoundError: if there is no such file, bundled name or repository, or not one file in the folder.
        ModuleNotFoundError: if a repository is asked for without ``huggingface_hub``.
        ValueError: if the file is not a SlimSE model, is damaged, holds weights that are not finite, or there is no
            such backend or precision. What a file asks for beyond its own size is refused before any memory is taken.
    """
    path = find_weights(weights, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
    try:
        with safe_open(path, "pt") as file:
            config = _read_config(file)
            model = SlimModel(config, runtime=runtime, backend=backend, precision=precision)
            _check_names(file, model)
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: {name} holds values that are not finite")
    model.load_state_dict(tensors)
    return model.train(trainable).requires_grad_(trainable).to(device)


from_pretrained = load
"""`load`, by the name that other libraries have for it."""


def _read_config(file: Any) -> ModelConfig:
    """The configuration in the header, after making sure that the network is no larger than the file.

    Raises:
        ValueError: if it is missing, damaged, or of a network that needs more weights than the file has.
    """
    metadata = file.metadata() or {}
    if "config" not in metadata:
        raise ValueError("no SlimSE configuration in the header; for original DEMUCS weights use slimse.load_denoiser")
    try:
        values = json.loads(metadata["config"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the configuration in the header is damaged: {error}") from error
    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    stored = sum(math.prod(shape) for shape in shapes.values())
    sizes = values.get("network") if isinstance(values, dict) else None
    if sizes is None:
        raise ValueError("the configuration in the header names no network: expected one that `slimse.save` wrote")
    for name, most in config_class(sizes).limits(len(shapes), stored).items():
        value = sizes.get(name)
        if isinstance(value, int) and value > most:
            raise ValueError(f"{name} = {value} of the configuration: expected at most {most} by the size of the file")
    config = ModelConfig.from_dict(values)
    needed = config.network.fewest_weights() + (config.router.fewest_weights() if config.router else 0)
    if needed > stored:
        raise ValueError(f"its configuration needs {needed} weights or more: expected at most the {stored} of the file")
    return config


def _check_names(file: Any, model: SlimModel) -> None:
    """Make sure that a file has the weights of a model, of its shapes and of a floating-point dtype.

    Raises:
        ValueError: if not; the message names the weight and what was expected.
    """
    expected, names = model.state_dict(), set(file.keys())
    for kind, wrong in (("has no", sorted(expected.keys() - names)), ("also has", sorted(names - expected.keys()))):
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(f"the file {kind} {', '.join(wrong[:3])}{more}: expected the weights of its configuration")
    for name, tensor in expected.items():
        found = file.get_slice(name)
        if tuple(found.get_shape()) != tuple(tensor.shape):
            raise ValueError(f"{name} has shape {tuple(found.get_shape())}: expected {tuple(tensor.shape)}")
        if found.get_dtype() not in _DTYPES:
            raise ValueError(f"{name} is of dtype {found.get_dtype()}: expected one of {_DTYPES}")
