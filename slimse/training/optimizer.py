"""Muon for matrices, AdamW for the rest, in one optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def multiplies_bf16(device: torch.device) -> bool:
    """Whether ``device`` has units for products in bf16; without them they take ten times as long as in float32."""
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _product_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix of each of ``[..., m, n]``, by Newton-Schulz steps.

    They are in bf16 where the device multiplies that fast, as bf16 is precise enough for an update.

    Source: Muon (K. Jordan et al., 2024); the coefficients of its quintic iteration are chosen for speed, and leave
    singular values between about 0.7 and 1.2, which is as good as 1 for an update.
    """
    x = matrix.to(_product_dtype(matrix.device))
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


def _matrices(tensor: Tensor) -> Tensor:
    """A parameter, or its gradient, as the matrices it holds: a view ``[..., m, n]``; see `MuonAdamW`."""
    if tensor.ndim == 4:
        return tensor.view(len(tensor), -1, tensor.shape[-1])
    return tensor.movedim(tensor.shape.index(min(tensor.shape)), 0) if tensor.ndim == 3 else tensor


def _is_vector(name: str) -> bool:
    """Whether a parameter holds vectors, perhaps several of them side by side."""
    return "bias" in name or "diagonal" in name


class MuonAdamW(torch.optim.Optimizer):
    """Muon on matrices, AdamW on biases and vectors. The shortest of three axes counts matrices (gates).

    Of four axes (a grouped GRU's) the first counts matrices, whose rows are those of all units and gates.

    Muon's updates are scaled to the size that AdamW's usually have (0.2 per element), so that one learning rate
    serves both. `torch.optim.Muon` takes no third axis, and Lightning no second optimizer, hence this class. Processes
    that train in step share Muon's work.

    Args:
        parameters: what to train, with names; those with ``bias`` or ``diagonal`` in the name go to AdamW.
        lr: learning rate.
        momentum: of Muon, Nesterov's.
        betas: of AdamW.
        weight_decay: decoupled, on the matrices alone.
        router_rate_factor: factor on ``lr`` for those with ``router`` in the name.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        router_rate_factor: float = 1.0,
    ) -> None:
        named = list(parameters)
        groups: list[dict[str, Any]] = [
            {
                "params": [p for name, p in named if _is_vector(name) != matrices and ("router" in name) == router],
                "matrices": matrices,
                "lr": lr * (router_rate_factor if router else 1.0),
            }
            for router in (False, True)
            for matrices in (True, False)
        ]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["matrices"]:
                self._muon(parameters, group)
                continue
            for parameter in parameters:
                self._adamw(parameter, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices. All processes have the same gradients; each orthogonalises some for the others."""
        distributed = dist.is_available() and dist.is_initialized()
        rank, processes = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        # By size, and there and back again, so that all have about as much to do.
        owners = itertools.cycle([*range(processes), *reversed(range(processes))])
        work = []
        for parameter in sorted(parameters, key=torch.numel, reverse=True):
            owner, update = next(owners), _matrices(self._momentum(parameter, group).contiguous())
            if owner == rank:
                direction = orthogonalise(update).contiguous()
            else:
                direction = torch.empty_like(
                    update, dtype=_product_dtype(update.device), memory_format=torch.contiguous_format
                )
            work.append((_matrices(parameter), owner, direction))
        for matrices, owner, direction in work:
            if distributed:
                dist.broadcast(direction, owner)
            matrices.mul_(1 - group["lr"] * group["weight_decay"])
            matrices.add_(direction, alpha=-group["lr"] * 0.2 * max(matrices.shape[-2:]) ** 0.5)

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's momentum."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(state["momentum"], group["momentum"])

    def _adamw(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["steps"] = 0
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["steps"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        mean = state["mean"] / (1 - first ** state["steps"])
        square = state["square"] / (1 - second ** state["steps"])
        parameter.add_(mean / (square.sqrt() + 1e-8), alpha=-group["lr"])
