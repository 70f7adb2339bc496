"""Making an existing network slimmable, and running it at a width.

`slimmify` runs the network once on an example and follows its channels (`trace`, `leaves`). It finds the groups of
channels that have to be cut together (`channels`, `plan`), turns the layers that have them into slimmable ones
(`exchange`), and checks what it made at every UF (`check`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..nn import SlimLayer
from ..nn.context import at
from ..ops import check_backend
from ..width import WidthSet
from .check import refusal, settle
from .exchange import Network, apply, calibrate, extract
from .file import load_slimmed, save_slimmed
from .plan import Plan
from .report import GroupReport, SlimmingReport, WidthReport, count_macs, report, why

__all__ = [
    "GroupReport",
    "SlimmingReport",
    "WidthReport",
    "at",
    "calibrate",
    "count_macs",
    "extract",
    "load_slimmed",
    "save_slimmed",
    "slimmify",
]


def slimmify(
    network: Network,
    example_inputs: Any,
    *,
    cuts: Mapping[str, str] | None = None,
    ufs: Sequence[float] = (0.125, 0.25, 0.5, 1.0),
    backend: str = "auto",
    precision: str = "ieee",
) -> Network:
    """Make a network slimmable in place, without a change of its code.

    The channels inside of its blocks are cut, found by a run on the example; what is summed up over blocks stays full,
    as do inputs and outputs. Outside of `at` the network computes what it did. The new layers are subclasses of
    those that they stand in for and keep their parameters, so that an optimizer or a checkpoint goes on working; batch
    norms have statistics of every UF besides (see `calibrate`).

    Every width is run on the example before this returns: it is finite, the same as `extract` gives (relative error
    below 1e-5), and at UF 1 the same as before. Channels that cannot be followed, or with which the network's own code
    does not run, stay full; ``network.slimming`` says which and why. Print it.

    Args:
        network: any module. Its weights are kept.
        example_inputs: of its call: a tensor, a tuple of arguments, or a mapping of keyword arguments; a short one
            will do.
        cuts: in place of all channels that can be cut those that belong to these layers: names as
            `torch.nn.Module.named_modules` gives them, or patterns such as ``"layers.*.linear1"``, to ``"output"``,
            ``"input"`` or ``"both"``; of an LSTM or GRU also ``"units"``, of attention ``"heads"``.
        ufs: those that are checked, reported, and that batch norms keep statistics of; the last one 1.
        backend: of convolutions in one dimension, linear and recurrent layers, see `slimse.ops`.
        precision: see `slimse.ops`.

    Returns:
        ``network``, with a `SlimmingReport` in its attribute ``slimming``.

    Raises:
        ValueError: if nothing can be cut, or for ``cuts`` of a name that no layer has, a layer of another type, or
            channels that cannot be cut; the message names the layer and says why.

    >>> network = slimmify(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(3, 8))
    >>> small = extract(network, 0.25)  # plain `torch.nn` layers
    """
    example = _example(example_inputs)
    widths = tuple(WidthSet(ufs))
    check_backend(backend, precision)
    if any(isinstance(layer, SlimLayer) for layer in network.modules()):
        raise ValueError("the network has slimmable layers: expected one that is not slimmed yet")
    options = {"backend": backend, "precision": precision}
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        plan = Plan(network, *example)
        if cuts is not None:
            plan.choose(network, cuts)
        settle(network, plan, example, widths, chosen=cuts is not None, **options)
        if not plan.cut:
            reasons = [f"{', '.join(g.layers[:2])}: {why(g)}" for g in plan.channels.all_groups() if g.layers]
            raise ValueError(f"nothing can be cut: {'; '.join(reasons[:8]) or 'it has no layer of a known type'}")
        apply(network, plan.applied(), ufs=widths, **options)
        refused = refusal(network, plan, example, widths)
        for layer in network.modules():
            if isinstance(layer, SlimLayer):
                layer.refusal = refused
        network.slimming = report(network, plan, example, widths, refused)  # type: ignore[assignment]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return network


def _example(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of an example."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple | list) and inputs:
        return tuple(inputs), {}
    if isinstance(inputs, Mapping) and inputs and not all(isinstance(value, str) for value in inputs.values()):
        return (), dict(inputs)
    raise ValueError(
        f"example_inputs = {inputs!r}: expected a tensor, a tuple of arguments or a mapping of keyword arguments"
    )
