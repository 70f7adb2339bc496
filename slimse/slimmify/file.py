"""Slimmed networks in files: safetensors with what was cut in the header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import nn

from ..atomic import written_whole
from ..nn import Axis, Segment, SlimLayer
from ..ops import check_backend
from .exchange import Cut, Network, apply
from .leaves import leaf_of
from .report import GroupReport, SlimmingReport, WidthReport

HEADER = "slimming"
"""Entry of the header that holds the report of `slimse.slimmify`."""


def save_slimmed(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights of a slimmed network into one safetensors file, with its UFs and what they cut in the header.

    The file appears whole or not at all. The code of the network is not in it: `load_slimmed` puts the weights into
    one that you build.

    Args:
        network: made by `slimse.slimmify`.
        path: file to write.

    Raises:
        ValueError: for a network that is not slimmed.
    """
    report = getattr(network, "slimming", None)
    if not isinstance(report, SlimmingReport):
        raise ValueError(f"network is a {type(network).__name__}: expected one that slimmify returned")
    # Copies, as tied weights share their memory and the format has no place for that.
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in _state(network)}
    with written_whole(Path(path)) as part:
        part.write_bytes(serialise(tensors, {HEADER: json.dumps(report.to_dict())}))


def load_slimmed(
    network: Network, path: str | os.PathLike[str], *, backend: str = "auto", precision: str = "ieee"
) -> Network:
    """Make a network slimmable in place as the one in a file is, and give it that one's weights.

    Args:
        network: of the same class and sizes as the saved one was, not slimmed.
        path: file that `save_slimmed` wrote.
        backend: as in `slimse.slimmify`.
        precision: as in `slimse.slimmify`.

    Returns:
        ``network``, in the mode (training or not) and on the devices that it had.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file was not written by `save_slimmed`, is damaged, or is of another network; the message
            names what does not fit. The network is as it was then.
    """
    check_backend(backend, precision)
    if any(isinstance(layer, SlimLayer) for layer in network.modules()):
        raise ValueError("the network has slimmable layers: expected one that is not slimmed yet")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, "pt") as file:
            report = _report((file.metadata() or {}).get(HEADER))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        ufs = tuple(width.uf for width in report.widths)
        _check(network, report.cut, tensors, ufs)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    apply(network, report.cut, ufs=ufs, backend=backend, precision=precision)
    for layer in network.modules():
        if isinstance(layer, SlimLayer):
            layer.refusal = report.refusal
    network.load_state_dict(tensors)
    network.slimming = report  # type: ignore[assignment]
    return network


def _state(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)]


def _report(header: str | None) -> SlimmingReport:
    """The report in a header."""
    if header is None:
        raise ValueError("no slimming in the header: expected a file that save_slimmed wrote")
    try:
        values = json.loads(header)
        return SlimmingReport(
            groups=tuple(GroupReport(tuple(group.pop("layers")), **group) for group in values["groups"]),
            widths=tuple(WidthReport(**width) for width in values["widths"]),
            uncalled=tuple(values["uncalled"]),
            refusal=str(values["refusal"]),
            cut=Cut(
                {name: {side: _axis(axis) for side, axis in sides.items()} for name, sides in values["cut"][0].items()},
                {name: dict(counts) for name, counts in values["cut"][1].items()},
            ),
        )
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"the slimming in the header is damaged: {error!r}") from error


def _axis(segments: Any) -> Axis:
    axis = Axis(Segment(int(size), int(blocks)) for size, blocks in segments)
    for size, blocks in axis:
        if not 1 <= blocks <= size or size % blocks:
            raise ValueError(f"the slimming in the header is damaged: {size} channels in {blocks} blocks")
    return axis


def _check(network: nn.Module, cut: Cut, tensors: dict[str, torch.Tensor], ufs: tuple[float, ...]) -> None:
    """Make sure that a network has the layers that a file cuts, and the weights that it holds."""
    layers, parameters = dict(network.named_modules()), dict(network.named_parameters(remove_duplicate=False))
    for name in cut.axes:
        if name not in parameters and leaf_of(layers.get(name, nn.Identity())) is None:
            found = type(layers[name]).__name__ if name in layers else "missing"
            raise ValueError(f"it cuts {name}, which is {found} in the network: expected a layer that can be cut")
    for name in cut.counts:
        if name not in layers:
            raise ValueError(f"it cuts heads of {name}, which is missing in the network")
    own = {name: tuple(tensor.shape) for name, tensor in _state(network)}
    held = {name: tuple(tensor.shape) for name, tensor in tensors.items() if ".narrow_" not in f".{name}"}
    if own != held:
        wrong = sorted(name for name in own.keys() | held.keys() if own.get(name) != held.get(name))
        raise ValueError(
            f"{wrong[0]} has shape {held.get(wrong[0])}: expected {own.get(wrong[0])}, as in the network"
            + (f"; {len(wrong) - 1} more do not fit" if len(wrong) > 1 else "")
        )
