"""The sandwich rule: one loss that trains all widths of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..slimmify import at

Loss = Callable[[Any, Any], Tensor]
"""Of an output and what it should be."""


def sandwich(
    network: nn.Module,
    batch: tuple[Any, Any],
    loss_fn: Loss,
    *,
    ufs: Sequence[float] | None = None,
    between: int = 1,
    distill: float = 1.0,
    distance: Loss | None = None,
    generator: torch.Generator | None = None,
    log: Callable[[str, Tensor], Any] | None = None,
) -> Tensor:
    """The loss of one step by the sandwich rule with in-place distillation.

    Every step runs the widest UF, the smallest, and some at random between. Each learns from the target; the narrow
    ones also learn from what the widest gave, through which no gradient flows.

    Args:
        network: made by `slimse.slimmify`, or one whose call takes ``uf=``, as `slimse.SlimModel`.
        batch: inputs and target. Inputs are a tensor, or a tuple of arguments.
        loss_fn: ``loss_fn(output, target)`` gives a scalar.
        ufs: the widths to train, rising; by default those that the network was made for.
        between: how many UFs to draw between the smallest and the widest.
        distill: weight of what narrow widths learn from the widest one, 0 for none.
        distance: ``distance(output, output_of_the_widest)`` gives a scalar; by default ``loss_fn``.
        generator: draws the UFs, on the CPU; by default PyTorch's own. Processes that train together need the same.
        log: called with ``"loss/<uf>"`` and the detached loss of every UF, as ``self.log`` of Lightning is.

    Returns:
        The sum, to call ``backward`` of.

    Raises:
        ValueError: if ``ufs`` is not given and the network has none.

    Source: arXiv 1903.05134.

    >>> for noisy, clean in loader:                                           # doctest: +SKIP
    ...     loss = sandwich(network, (noisy, clean), torch.nn.functional.l1_loss)
    ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
    """
    inputs, target = batch
    widths = _widths(network) if ufs is None else tuple(ufs)
    if not widths:
        raise ValueError("ufs = (): expected at least one UF")
    middle = widths[1:-1]
    order = torch.randperm(len(middle), generator=generator)[:between].tolist()
    narrow = [*widths[:-1][:1], *(middle[index] for index in order)]
    wide = _run(network, inputs, widths[-1])
    total = loss_fn(wide, target)
    losses = {widths[-1]: total.detach()}
    teacher = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, wide)
    for uf in narrow:
        output = _run(network, inputs, uf)
        own = loss_fn(output, target)
        losses[uf] = own.detach()
        total = total + own
        if distill:
            total = total + distill * (distance or loss_fn)(output, teacher)
    if log is not None:
        for uf, loss in losses.items():
            log(f"loss/{uf:g}", loss)
    return total


def _unwrapped(network: nn.Module) -> Any:
    """The network inside of what wraps it for several processes."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def _widths(network: nn.Module) -> tuple[float, ...]:
    inner = _unwrapped(network)
    if hasattr(inner, "slimming"):
        return tuple(width.uf for width in inner.slimming.widths)
    if hasattr(inner, "ufs"):
        return tuple(inner.ufs)
    raise ValueError(f"the network is a {type(inner).__name__} with no UFs of its own: expected ufs")


def _run(network: nn.Module, inputs: Any, uf: float) -> Any:
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not hasattr(_unwrapped(network), "slimming"):
        return network(*arguments, uf=uf)
    with at(uf):
        return network(*arguments)
