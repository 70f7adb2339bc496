"""What a slimmed network costs at each UF, and what of it stays full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..nn.context import at
from .channels import Group
from .check import run
from .exchange import Cut, extract
from .plan import Plan


@dataclass(frozen=True)
class GroupReport:
    """Channels that a UF cuts together, or that stay full."""

    layers: tuple[str, ...]
    """Those that put the channels out."""
    blocks: int
    """A UF leaves a prefix of so many equal blocks (channels, groups, heads)."""
    full: str
    """Why they stay full, or empty."""


@dataclass(frozen=True)
class WidthReport:
    """Cost of one UF, on the example."""

    uf: float
    macs: int
    """Multiply-accumulates of the call, of products and convolutions, with the batch of the example."""
    parameters: int


@dataclass(frozen=True)
class SlimmingReport:
    """What `slimse.slimmify` did to a network."""

    groups: tuple[GroupReport, ...]
    widths: tuple[WidthReport, ...]
    """Rising."""
    uncalled: tuple[str, ...]
    """Layers that the example does not reach; they stay full."""
    refusal: str
    """Why a tensor of UFs is refused, or empty if items of a batch may differ in width."""
    cut: Cut
    """What a UF cuts of every layer: enough to make another network of the same code slimmable."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table for people."""
        cut = [group for group in self.groups if not group.full]
        lines = [f"{len(cut)} groups of channels are cut:"]
        lines += [f"  {_short(group.layers)} ({group.blocks} blocks)" for group in cut]
        full = [group for group in self.groups if group.full]
        lines += [f"{len(full)} stay full:"] if full else []
        lines += [f"  {_short(group.layers)}: {group.full}" for group in full]
        lines += [f"not reached by the example: {_short(self.uncalled)}"] if self.uncalled else []
        widest = self.widths[-1]
        lines.append("UF         MACs    of full  parameters")
        lines += [
            f"{w.uf:<6g} {w.macs:>12,} {w.macs / max(widest.macs, 1):>7.3f} {w.parameters:>12,}" for w in self.widths
        ]
        lines.append(f"one width per item: {f'no, {self.refusal}' if self.refusal else 'yes'}")
        return "\n".join(lines)


def _short(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _recurrent_flops(x: Any, weight_ih: Any, weight_hh: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Of one layer and direction of an LSTM that oneDNN runs, which PyTorch's counter does not know."""
    steps = x[0] * x[1]
    return 2 * steps * (weight_ih[0] * weight_ih[1] + weight_hh[0] * weight_hh[1])


def count_macs(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Multiply-accumulates of a call."""
    rules = {torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops}
    # PyTorch's transformer layers may run as one operation, which its counter does not know.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=rules) as counter:
            run(network, args, kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2


def report(
    network: nn.Module, plan: Plan, example: tuple[tuple[Any, ...], dict[str, Any]], ufs: Sequence[float], refused: str
) -> SlimmingReport:
    """The report of a network that a plan was applied to; in eval mode."""
    groups = [
        GroupReport(tuple(group.layers), group.blocks, "" if any(group is one for one in plan.cut) else why(group))
        for group in plan.channels.all_groups()
        if group.layers
    ]
    widths = []
    for uf in ufs:
        with at(uf):
            macs = count_macs(network, *example)
        parameters = sum(parameter.numel() for parameter in extract(network, uf).parameters())
        widths.append(WidthReport(uf, macs, parameters))
    return SlimmingReport(tuple(groups), tuple(widths), tuple(plan.uncalled), refused, plan.applied())


def why(group: Group) -> str:
    """Why the channels of a group stay full."""
    if group.reason:
        return group.reason
    if group.joins:
        return f"an interface between blocks ({group.joins}), which only cuts can choose"
    return "not chosen" if group.blocks > 1 else "one block of channels"
