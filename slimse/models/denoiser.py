"""Reading checkpoints of the original DEMUCS denoiser (arXiv 2006.12847) into a `SlimDemucs`."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .config import SlimDemucsConfig
from .demucs import SlimDemucs

_POSITIONAL = (
    *("chin", "chout", "hidden", "depth", "kernel_size", "stride", "causal", "resample", "growth", "max_hidden"),
    *("normalize", "glu", "rescale", "floor", "sample_rate"),
)
"""Constructor arguments of the original network, in their order."""
_KNOWN_ELSEWHERE = {"chin": 1, "chout": 1, "glu": True}
"""Arguments that `SlimDemucs` does not have, and the only value it can stand for."""
_TRAINING_ONLY = {"max_hidden", "rescale", "seed"}
"""Arguments that leave no trace in a trained network beyond the shapes of its weights."""


class _OriginalClass:
    """Stands for the network's class in a pickled package; it is never built."""


def load_denoiser(source: str | os.PathLike[str] | Mapping[str, Any], **arguments: Any) -> SlimDemucs:
    """Load weights of the original DEMUCS denoiser; at UF 1.0 the result computes what the original computes.

    Args:
        source: a ``.th``/``.pth``/``.pt`` or ``.safetensors`` file, a folder with a ``state_dict.safetensors``, or what
            such a file holds: a bare state dict, or a package ``{"class", "args", "kwargs", "state"}``. A
            ``config.json`` beside a safetensors file gives its arguments.
        arguments: constructor arguments of the original network that the weights cannot tell (``resample``, ``stride``,
            ``normalize``, ``floor``, ``sample_rate``), where they differ from its defaults and the file does not say.

    Returns:
        The network, in evaluation mode and float32. It offers every width; the weights were trained for 1.0 alone.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file or arguments that are not of such a network. Pickled code is never executed.
    """
    stored: dict[str, Any] = {}
    if isinstance(source, Mapping):
        package: Any = source
    else:
        package, stored = _read(Path(source))
    if "state" in package and "kwargs" in package:
        names = dict(zip(_POSITIONAL, package.get("args", ()), strict=False))
        stored = {**stored, **names, **package["kwargs"]}
        package = package["state"]
    state = {name: tensor for name, tensor in package.items() if isinstance(tensor, Tensor)}
    config = _infer_config(state, {**stored, **arguments})
    model = SlimDemucs(config)
    model.load_state_dict({_rename(name, config): tensor.float() for name, tensor in state.items()})
    return model.eval()


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """Contents of a checkpoint, and the arguments in a ``config.json`` beside it."""
    if path.is_dir():
        path = path / "state_dict.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        beside = path.with_name("config.json")
        return load_file(path), json.loads(beside.read_text()) if beside.is_file() else {}
    try:
        # The package names its class; an inert stand-in lets the safe reader pass over it.
        with torch.serialization.safe_globals([(_OriginalClass, "denoiser.demucs.Demucs")]):
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no checkpoint of weights alone, and nothing in it was executed: {error}"
        ) from error


def _infer_config(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> SlimDemucsConfig:
    """The configuration that weights and constructor arguments tell; they must agree."""
    depth = len({name.split(".")[1] for name in state if re.fullmatch(r"encoder\.\d+\.0\.weight", name)})
    if not depth or "lstm.lstm.weight_ih_l0" not in state:
        raise ValueError(
            f"not a DEMUCS denoiser: its weights are {sorted(state)[:4]} ..., expected encoder.*, lstm.lstm.*"
        )
    hidden, _, kernel_size = state["encoder.0.0.weight"].shape
    seen: dict[str, Any] = {
        "hidden": hidden,
        "depth": depth,
        "kernel_size": kernel_size,
        "causal": "lstm.lstm.weight_ih_l0_reverse" not in state,
        "growth": state["encoder.1.0.weight"].shape[0] // hidden if depth > 1 else 2,
    }
    values: dict[str, Any] = {"stride": 4, "resample": 4, "normalize": True, "floor": 1e-3, "sample_rate": 16_000}
    for name, value in arguments.items():
        expected = {**seen, **_KNOWN_ELSEWHERE}.get(name, value)
        if name in _TRAINING_ONLY:
            continue
        if name not in {*_POSITIONAL} or value != expected:
            raise ValueError(f"{name} = {value!r} in a DEMUCS checkpoint: expected {expected!r} by its weights")
        if name in values:
            values[name] = value
    layers = len([name for name in state if re.fullmatch(r"lstm\.lstm\.weight_ih_l\d+", name)])
    level = "signal" if values.pop("normalize") else "none"
    return SlimDemucsConfig(**values, **seen, rnn="lstm", rnn_layers=layers, level=level)


def _rename(name: str, config: SlimDemucsConfig) -> str:
    """Name in `SlimDemucs` of a weight of the original; its decoder counts from the deepest level."""
    if match := re.fullmatch(r"encoder\.(\d+)\.([02])\.(\w+)", name):
        level, layer, kind = match.groups()
        return f"encoder.{level}.{'conv' if layer == '0' else 'glu'}.{kind}"
    if match := re.fullmatch(r"decoder\.(\d+)\.([02])\.(\w+)", name):
        level, layer, kind = match.groups()
        return f"decoder.{config.depth - 1 - int(level)}.{'glu' if layer == '0' else 'conv'}.{kind}"
    return re.sub(r"^lstm\.(lstm|linear)\.", r"bottleneck.\1.", name)
