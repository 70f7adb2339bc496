"""Checks of a network that was just made slimmable, on the example: nothing is believed that was not run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..nn.context import at
from .channels import Group, describe
from .exchange import apply, extract
from .plan import Plan

TOLERANCE = 1e-5
"""Relative error that is allowed in single precision."""
_LOOSE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)
"""What networks raise when a shape does not fit."""


@torch.no_grad()
def run(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call gives, of which copies of the arguments are given to it."""

    def own(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    out = network(*tree_map(own, args), **tree_map(own, kwargs))
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor], *, scale: float = 1.0) -> str:
    """What is different between the outputs of two calls, or nothing.

    Where a state has all units on one side and the active ones alone on the other, the first of them are compared.
    """
    if len(found) != len(expected):
        return f"{len(found)} outputs instead of {len(expected)}"
    for a, b in zip(found, expected, strict=True):
        if a.ndim != b.ndim:
            return f"an output of shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        for axis, size in enumerate(b.shape):
            a = a.narrow(axis, 0, min(size, a.shape[axis]))
        if a.shape != b.shape:
            return f"an output of shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        if bool(b.isfinite().all()) and not bool(a.isfinite().all()):
            return "an output that is not finite"
        wide = torch.complex128 if a.is_complex() else torch.float64
        error = (a.to(wide) - b.to(wide)).nan_to_num().norm() / b.to(wide).nan_to_num().norm().clamp(min=1e-12)
        if float(error) > scale * _LOOSE.get(a.dtype, TOLERANCE):
            return f"a relative error of {float(error):.1e}"
    return ""


def problem(
    network: nn.Module,
    plan: Plan,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    ufs: Sequence[float],
    **options: Any,
) -> str:
    """Make a copy of a network slimmable by a plan and run it at every UF; what goes wrong, or nothing."""
    slim = copy.deepcopy(network).eval()
    expected = run(slim, *example)
    apply(slim, plan.applied(), ufs=tuple(ufs), **options)
    for uf in (1.0, *(uf for uf in ufs if uf != 1)):
        try:
            with at(uf):
                found = run(slim, *example)
            small = run(extract(slim, uf), *example)
        except _ERRORS as error:
            return f"at UF {uf:g}: {describe(error)}"
        if wrong := difference(found, small) or (difference(found, expected) if uf == 1 else ""):
            return f"at UF {uf:g}: {wrong}"
        if not all(bool(tensor.isfinite().all()) for tensor in found):
            return f"at UF {uf:g}: an output that is not finite"
    return ""


def settle(network: nn.Module, plan: Plan, example: Any, ufs: Sequence[float], *, chosen: bool, **options: Any) -> None:
    """Leave those groups full with which the network does not run, and say why.

    Raises:
        ValueError: if the user chose them.
    """
    if not problem(network, plan, example, ufs, **options):
        return
    if plan.count_heads(network) and not problem(network, plan, example, ufs, **options):
        return
    plan.counts.clear()
    wanted, narrowest = plan.cut, (ufs[0], 1.0)
    reasons: list[str] = []
    for group in wanted:
        plan.cut = [group]
        reasons.append(problem(network, plan, example, narrowest, **options))
    plan.cut = [group for group, reason in zip(wanted, reasons, strict=True) if not reason]
    if plan.cut and problem(network, plan, example, ufs, **options):
        # Groups that run alone, and not together, or not at every UF.
        alone, kept = plan.cut, list[Group]()
        for group in alone:
            plan.cut = [*kept, group]
            reason = problem(network, plan, example, ufs, **options)
            reasons[next(index for index, one in enumerate(wanted) if one is group)] = reason
            kept += [] if reason else [group]
        plan.cut = kept
    for group, reason in zip(wanted, reasons, strict=True):
        if reason:
            group.reason = f"the network's own code does not run with fewer of them: {reason}"
            if chosen:
                raise ValueError(f"{', '.join(group.layers)} cannot be cut: {reason}")


@torch.no_grad()
def refusal(slim: nn.Module, plan: Plan, example: tuple[tuple[Any, ...], dict[str, Any]], ufs: Sequence[float]) -> str:
    """Why items of one batch cannot run at widths of their own, or nothing if they can.

    Three items at three UFs have to give what each gives alone.
    """
    mixes = next((group.mixes for group in plan.cut if group.mixes), "")
    first = next((leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor) and leaf.ndim), None)
    if first is None:
        return "the example has no tensor with a batch"
    batch = first.shape[0]
    rng = torch.Generator().manual_seed(0)

    def items(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != batch:
            return leaf
        three = leaf[:1].repeat(3, *[1] * (leaf.ndim - 1))
        if not leaf.is_floating_point():
            return three
        noise = torch.randn(three.shape, generator=rng).to(three)
        return three + 0.1 * noise * three.std()

    def one(leaf: Any, index: int) -> Any:
        inside = isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == 3
        return leaf[index : index + 1] if inside else leaf

    many: Any = tree_map(items, example)
    chosen = [ufs[0], ufs[len(ufs) // 2], 1.0]
    try:
        with at(torch.tensor(chosen, device=first.device)):
            found = run(slim, *many)
    except _ERRORS as error:
        if mixes:
            return f"{mixes} works on several channels at once"
        return f"its layers do not see one item of the batch each: {describe(error)}"
    for index, uf in enumerate(chosen):
        with at(uf):
            alone = run(slim, *tree_map(lambda leaf, index=index: one(leaf, index), many))
        parts = [tensor[index : index + 1] for tensor in found if tensor.ndim and tensor.shape[0] == 3]
        if wrong := difference(parts, alone, scale=10):
            return f"{mixes or 'the code between its layers'} works on several channels at once ({wrong})"
    return ""
