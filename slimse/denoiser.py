"""Reading checkpoints of the original DEMUCS denoiser (arXiv 2006.12847) into a `SlimModel`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .config import ModelConfig
from .model import SlimModel
from .networks import SlimDemucsConfig

_POSITIONAL = (
    *("chin", "chout", "hidden", "depth", "kernel_size", "stride", "causal", "resample", "growth", "max_hidden"),
    *("normalize", "glu", "rescale", "floor", "sample_rate"),
)
"""Constructor arguments of the original network, in their order."""
_KNOWN_ELSEWHERE = {"chin": 1, "chout": 1, "glu": True}
"""Arguments that `SlimDemucsConfig` does not have, and the only value it can stand for."""
_TRAINING_ONLY = {"max_hidden", "rescale", "seed"}
"""Arguments that leave no trace in a trained network beyond the shapes of its weights."""


class _OriginalClass:
    """Stands for the network's class in a pickled package; it is never built."""


def load_denoiser(source: str | os.PathLike[str] | Mapping[str, Any], **arguments: Any) -> SlimModel:
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
    where = "the given weights" if isinstance(source, Mapping) else os.fspath(source)
    try:
        return _build(package, stored, arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _build(package: Any, stored: Any, arguments: Mapping[str, Any]) -> SlimModel:
    """The network of what a file holds; raises a `ValueError` for what is not of a DEMUCS denoiser."""
    if not isinstance(package, Mapping) or not isinstance(stored, Mapping):
        raise ValueError(f"holds a {type(package).__name__}: expected weights by name, or a package with arguments")
    if "state" in package and "kwargs" in package:
        positional, named, state = package.get("args", ()), package["kwargs"], package["state"]
        if not isinstance(positional, list | tuple) or not isinstance(named, Mapping) or not isinstance(state, Mapping):
            raise ValueError("a damaged package: expected arguments by place and by name, and weights by name")
        stored = {**stored, **dict(zip(_POSITIONAL, positional, strict=False)), **named}
        package = state
    state = {name: tensor for name, tensor in package.items() if isinstance(tensor, Tensor)}
    if not all(isinstance(name, str) for name in state):
        raise ValueError("names of weights are no text: expected encoder.*, decoder.*, lstm.*")
    for name, tensor in state.items():
        _check_weight(name, tensor)
    config = _infer_config(state, {**stored, **arguments})
    assert isinstance(config.network, SlimDemucsConfig)
    renamed = {_rename(name, config.network.depth): (name, tensor) for name, tensor in state.items()}
    with torch.device("meta"):
        expected = SlimModel(config).state_dict()
    for name in expected.keys() ^ renamed.keys():
        what = "is missing" if name in expected else "is no weight of this network"
        raise ValueError(f"{renamed[name][0] if name in renamed else name} {what}")
    for name, tensor in expected.items():
        theirs, found = renamed[name]
        if found.shape != tensor.shape:
            raise ValueError(f"{theirs} has shape {tuple(found.shape)}: expected {tuple(tensor.shape)}")
    model = SlimModel(config)
    model.load_state_dict({name: tensor.float() for name, (_, tensor) in renamed.items()})
    return model.eval()


def _check_weight(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise ValueError(f"{name} is {tensor.dtype}: expected a dense floating-point tensor")
    # A view may repeat its elements to any size.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, which is more than is stored of it")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite")


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """Contents of a checkpoint, and the arguments in a ``config.json`` beside it."""
    if path.is_dir():
        path = path / "state_dict.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        beside = path.with_name("config.json")
        try:
            return load_file(path), json.loads(beside.read_text()) if beside.is_file() else {}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{beside} is damaged: {error}") from error
    try:
        # The package names its class; an inert stand-in lets the safe reader pass over it.
        with torch.serialization.safe_globals([(_OriginalClass, "denoiser.demucs.Demucs")]):
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:
        # A damaged file may end in any exception of the reader.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is no checkpoint of weights alone, and nothing in it was executed: {reason}"
        ) from error


def _infer_config(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> ModelConfig:
    """The configuration that weights and constructor arguments tell; they must agree."""
    depth = len({name.split(".")[1] for name in state if re.fullmatch(r"encoder\.\d+\.0\.weight", name)})
    if not depth or "lstm.lstm.weight_ih_l0" not in state:
        raise ValueError(
            f"not a DEMUCS denoiser: its weights are {sorted(state)[:4]} ..., expected encoder.*, lstm.lstm.*"
        )
    counts = []
    for index in range(depth):
        weight = state.get(f"encoder.{index}.0.weight")
        if weight is None or weight.ndim != 3 or not weight.numel():
            raise ValueError(f"encoder.{index}.0.weight of a DEMUCS denoiser: expected a weight [channels, in, taps]")
        counts.append(weight.shape[0])
    kernel_size = state["encoder.0.0.weight"].shape[2]
    seen: dict[str, Any] = {
        "hidden": counts[0],
        "depth": depth,
        "kernel_size": kernel_size,
        "causal": "lstm.lstm.weight_ih_l0_reverse" not in state,
    }
    _check_growth(counts, arguments)
    values: dict[str, Any] = {"stride": 4, "resample": 4, "normalize": True, "floor": 1e-3, "sample_rate": 16_000}
    for name, value in arguments.items():
        expected = {**seen, **_KNOWN_ELSEWHERE}.get(name, value)
        if name in _TRAINING_ONLY or name == "growth":
            continue
        if name not in {*_POSITIONAL} or type(value) not in (type(expected), int, bool) or value != expected:
            raise ValueError(f"{name} = {value!r} in a DEMUCS checkpoint: expected {expected!r} by its weights")
        if name in values:
            values[name] = value
    layers = len([name for name in state if re.fullmatch(r"lstm\.lstm\.weight_ih_l\d+", name)])
    level, floor = "signal" if values.pop("normalize") else "none", values.pop("floor")
    listed = None if _doubles(counts) else tuple(counts)
    network = SlimDemucsConfig(**values, **seen, level_channels=listed, rnn="lstm", rnn_layers=layers)
    return ModelConfig(network, level=level, floor=floor)


def _doubles(counts: list[int]) -> bool:
    return all(count == counts[0] * 2**level for level, count in enumerate(counts))


def _check_growth(counts: list[int], arguments: Mapping[str, Any]) -> None:
    """Make sure that the channels of the blocks are those of the arguments, as the original computes them."""
    growth, most = arguments.get("growth"), arguments.get("max_hidden", 10_000)
    if growth is None:
        return
    expected = [counts[0]]
    for name, value in (("growth", growth), ("max_hidden", most)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise ValueError(f"{name} = {value!r} in a DEMUCS checkpoint: expected a positive number")
    while len(expected) < len(counts):
        expected.append(min(int(growth * expected[-1]), int(most)))
    if expected != counts:
        raise ValueError(
            f"growth = {growth!r} and max_hidden = {most!r} in a DEMUCS checkpoint: expected {counts} channels, as its "
            f"weights have, and not {expected}"
        )


def _rename(name: str, depth: int) -> str:
    """Name in a `SlimModel` of a weight of the original; its decoder counts from the deepest level."""
    if match := re.fullmatch(r"encoder\.(\d+)\.([02])\.(\w+)", name):
        level, layer, kind = match.groups()
        return f"network.encoder.{level}.{'conv' if layer == '0' else 'glu'}.{kind}"
    if match := re.fullmatch(r"decoder\.(\d+)\.([02])\.(\w+)", name):
        level, layer, kind = match.groups()
        return f"network.decoder.{depth - 1 - int(level)}.{'glu' if layer == '0' else 'conv'}.{kind}"
    return re.sub(r"^lstm\.(lstm|linear)\.", r"network.bottleneck.\1.", name)
