"""What trains a router: gates that can be differentiated, the losses on how much is used, and the calibration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ..model import SlimModel
from ..profiling import profile
from ..router import Router
from ..width import WidthSet
from .losses import EnhancementLoss

_HEADROOM = 0.97
"""Share of a budget that is used on the sound of the calibration: a budget says what may be spent."""


def straight_through_gates(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """One-hot gates with the gradient of a Gumbel-softmax.

    The temperature divides the logits before the noise is added: as it falls, sampling turns into the argmax of
    inference, and what the losses hold for the samples holds for it.

    Args:
        logits: ``[..., n]``.
        noise: standard Gumbel, ``[..., n]``.
        temperature: positive.

    Returns:
        ``[..., n]``: one-hot of the largest noisy logit forward, softmax backward.

    Source: E. Jang et al., arXiv 1611.01144; C. Maddison et al., arXiv 1611.00712.
    """
    soft = torch.softmax(logits / temperature + noise, dim=-1)
    hard = F.one_hot(soft.argmax(-1), logits.shape[-1]).to(soft.dtype)
    # The bracket is exactly 0, so the value stays exactly one-hot.
    return hard + (soft - soft.detach())


def max_entropy_shares(ufs: WidthSet, budget: Tensor) -> Tensor:
    """The distribution over UFs with the largest entropy among those whose mean is the budget.

    It is ``p_j ~ exp(-s * ufs[j])``, with ``s`` found by bisection. Budgets at the ends are moved in by a hundredth of
    their distance from each other, so that every share is positive.

    Args:
        ufs: what to choose from.
        budget: any shape, each from the smallest UF to 1.

    Returns:
        ``[..., len(ufs)]``, float32.
    """
    values = torch.tensor(ufs, dtype=torch.float64, device=budget.device)
    margin = 0.01 * (values[-1] - values[0])
    target = budget.double().clamp(values[0] + margin, values[-1] - margin).unsqueeze(-1)
    low, high = torch.full_like(target, -400.0), torch.full_like(target, 400.0)
    for _ in range(50):
        middle = (low + high) / 2
        above = (torch.softmax(-middle * values, -1) * values).sum(-1, keepdim=True) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.softmax(-(low + high) / 2 * values, -1).float()


class RoutingLoss(nn.Module):
    """``beta * L_eff + gamma * L_bal``: use the budget on average, and all UFs.

    The paper does not publish its formulas; these are this project's. Let item ``i`` with budget ``b_i`` choose gates
    ``g_itj``, so that it uses ``u_i = mean_t sum_j v_j g_itj`` and UF ``j`` a share ``s_ij = mean_t g_itj`` of its
    frames. Budgets are spread over the router's knots ``k`` by the hat weights ``w_ik``, and sums over items are
    running ones, which forget by ``memory`` per step:

        ``R_k = sum_i w_ik u_i / sum_i w_ik b_i``                       used over asked
        ``L_eff = mean_i sum_k w_ik (log R_k)^2``
        ``P_kj = sum_i w_ik s_ij / sum_i w_ik``, ``Q_kj`` the same of ``q_j(b_i)``
        ``L_bal = mean_i sum_k w_ik sum_j P_kj log(P_kj / Q_kj)``

    with ``q(b)`` the distribution over UFs of the largest entropy with mean ``b`` (`max_entropy_shares`).

    - *Averages over the corpus, not over a clip.* A batch is a handful of clips; held to the budget in each, the
      router could not give hard clips more than easy ones. The gradient is that of the running average: every clip
      of a budget pays the same price per unit of use, ``2 log(R_k) / b``, whatever it uses itself.
    - *Logarithms*, because 0.02 too much is little at a budget of 0.75 and a lot at 0.15.
    - *Divergence from q(b)*, not from equal shares, which no small or large budget could have: at
      ``L_bal = 0`` the mean is the budget, so the two terms do not pull against each other.
    - *Linear in this batch*: the price is a constant of the step, so the mean over the processes of a distributed
      run has the gradient of one process with all the items.

    Args:
        router: gives knots and UFs.
        beta: weight of ``L_eff``. It pulls like a spring: the smaller, the further the use stays from the
            budget, in the direction in which the enhancement loss pulls.
        gamma: weight of ``L_bal``.
        memory: share of the running sums that a step keeps.
    """

    used: Tensor
    shares: Tensor
    asked: Tensor
    wanted: Tensor

    def __init__(self, router: Router, beta: float = 1.0, gamma: float = 0.01, memory: float = 0.95) -> None:
        super().__init__()
        self.ufs, self.beta, self.gamma, self.memory = router.ufs, beta, gamma, memory
        self.register_buffer("values", torch.tensor(router.ufs))
        # Begin as if every knot had seen one item that did what was asked.
        shares = max_entropy_shares(router.ufs, router.budgets)
        used = shares @ torch.tensor(router.ufs)
        for name, value in (("used", used), ("asked", used), ("shares", shares), ("wanted", shares)):
            self.register_buffer(name, value.clone())

    def forward(self, gates: Tensor, budget: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Count the gates of a step in, and return the loss.

        Args:
            gates: ``[B, frames, n_ufs]``, from `straight_through_gates`.
            budget: ``[B]``.
            weights: ``[B, knots]``, from `Router.knot_weights`.

        Returns:
            A scalar whose gradient is that of ``beta * L_eff + gamma * L_bal``, and the values of both for the log.
        """
        # The running sums are compared with each other: autocast must not round them.
        with torch.autocast(gates.device.type, enabled=False):
            return self._loss(gates.float().mean(1), budget, weights)

    def _loss(self, shares: Tensor, budget: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        used = shares @ self.get_buffer("values")
        self._remember(used.detach(), shares.detach(), budget, weights)
        excess = torch.log(self.used / self.asked)
        portions = self.shares / self.shares.sum(1, keepdim=True)
        divergence = torch.log(portions.clamp(min=1e-6) * self.wanted.sum(1, keepdim=True) / self.wanted)
        price = weights @ (2 * excess) / budget
        pull = (price * used).mean() * self.beta + ((weights @ divergence) * shares).sum(1).mean() * self.gamma
        efficiency = (weights @ excess.square()).mean()
        balance = (weights @ (portions * divergence).sum(1)).mean()
        value = self.beta * efficiency + self.gamma * balance
        return value + (pull - pull.detach()), {"efficiency": efficiency, "balance": balance}

    def _remember(self, used: Tensor, shares: Tensor, budget: Tensor, weights: Tensor) -> None:
        wanted = max_entropy_shares(self.ufs, budget)
        # What is wanted has a mean a little inside the range at its ends; asking for it keeps both losses consistent.
        asked = wanted @ self.get_buffer("values")
        sums = torch.cat([weights.t() @ x for x in (used[:, None], asked[:, None], shares, wanted)], dim=1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        count = len(self.ufs)
        for buffer, new in zip(
            (self.used, self.asked, self.shares, self.wanted), sums.split([1, 1, count, count], dim=1), strict=True
        ):
            buffer.mul_(self.memory).add_(new.view_as(buffer))


_AROUND = 5
"""Frames, 80 ms, over which a frame's benefit is taken: about as long as a router stays at a width. Half a second hid
what there is to gain most by: loud moments are worth more width than the soft ones between them."""


@torch.no_grad()
def frame_benefit(
    loss: EnhancementLoss, noisy: Tensor, clean: Tensor, wide: Tensor, narrow: Tensor, hop: int, frames: int
) -> Tensor:
    """What the widest width gains over a narrow one, around each frame: a measured value for the router to learn from.

    The gradient of the gates says what a few channels more would do, to first order; two widths of one step, compared
    frame by frame, say what they did. If the loss falls by so much per octave of width, a router that pays a price per
    width finds its optimum at a width in proportion to it.

    Args:
        loss: what the widths are trained with.
        noisy: ``[B, 1, T]``.
        clean: the same.
        wide: output of the widest width.
        narrow: output of a narrow one.
        hop: samples per frame.
        frames: of the router.

    Returns:
        ``[B, frames]``: how much of the loss is saved, mean over 80 ms.
    """
    saved = loss.saved_per_frame(narrow, wide, clean, noisy, hop, frames).unsqueeze(1)
    return F.avg_pool1d(saved, _AROUND, 1, _AROUND // 2, count_include_pad=False)[:, 0]


@torch.no_grad()
def frame_costs(model: SlimModel, loss: EnhancementLoss, noisy: Tensor, clean: Tensor) -> Tensor:
    """What every width loses against the widest, around each frame, on ``[B, 1, T]``: ``[B, frames, len(ufs)]``."""
    hop, frames = model.geometry.hop, model.geometry.frames(noisy.shape[2])
    wide = model(noisy, model.ufs[-1])
    lost = [frame_benefit(loss, noisy, clean, wide, model(noisy, uf), hop, frames) for uf in model.ufs[:-1]]
    return torch.stack([*lost, torch.zeros_like(lost[0])], dim=2)


def measured(
    model: SlimModel, loss: EnhancementLoss, pairs: Dataset[tuple[Tensor, Tensor]], count: int, device: torch.device
) -> TensorDataset:
    """The first ``count`` pairs with their `frame_costs`, which a frozen backbone does not change.

    Args:
        model: in inference it may run compiled. It is back where it was afterwards.
        loss: what the widths are worth in.
        pairs: noisy and clean, ``[1, T]`` each.
        count: how many of them to measure.
        device: where to run the widths.

    Returns:
        Noisy signals ``[1, T]`` and costs ``[frames, len(ufs)]``.
    """
    home = next(model.parameters()).device
    model, loss = model.to(device).eval(), loss.to(device)
    noisy, costs = [], []
    # Few at a time bound the memory.
    for start in range(0, count, 4):
        items = [pairs[index] for index in range(start, min(start + 4, count))]
        sounds, cleans = (torch.stack(side).to(device) for side in zip(*items, strict=True))
        noisy.append(sounds.cpu())
        costs.append(frame_costs(model, loss, sounds, cleans).cpu())
    model.to(home)
    loss.to(home)
    return TensorDataset(torch.cat(noisy), torch.cat(costs))


def router_overhead_uf(model: SlimModel) -> float:
    """The cost of the router as so much more mean UF, since multiply-accumulates grow in proportion to that."""
    costs = profile(model)
    assert costs.router_macs_per_sample is not None
    narrow, *_, wide = costs.widths
    return costs.router_macs_per_sample * (wide.uf - narrow.uf) / (wide.macs_per_sample - narrow.macs_per_sample)


@torch.no_grad()
def calibrate(model: SlimModel, noisy: Tensor) -> None:
    """Measure what the router spends at each budget, and let `Router.calibrated_budgets` make up for the difference.

    The router's own cost is taken off, so that a budget spends what a fixed UF of the same number does, and a little
    is kept for sound that is harder than that of the calibration. The smallest budget leaves nothing to choose: there,
    what the router wants is lowered until no frame gets more than the smallest UF.

    Args:
        model: with a router; its `Router.calibrated_budgets` are replaced, and the first of its `Router.bias_width`.
        noisy: ``[B, 1, T]``, sound of the usual kind: some hundreds of clips.
    """
    router = model.router
    assert router is not None
    router.calibrated_budgets.copy_(router.budgets)
    steps = torch.linspace(0, 1, 4 * len(router.budgets) + 1, device=router.budgets.device)
    grid = router.budgets[0] ** (1 - steps)
    # What the router computes from the sound does not depend on the budget: once is enough.
    state = router.initial_state(len(noisy))
    normalised, _ = model.normalised(noisy[:, 0], model.initial_state(len(noisy)))
    signal = torch.cat([state.samples, normalised], dim=1)
    levels = router.levels(signal[:, : signal.shape[1] - noisy.shape[2] % model.geometry.hop])
    ufs = levels.new_tensor(model.ufs)
    least = router.budgets[:1].expand(len(noisy))
    while router.logits(levels, least, state.hidden)[0].argmax(2).any():
        router.bias_width[0] -= 0.25
    choices = [router.logits(levels, budget.expand(len(noisy)), state.hidden)[0].argmax(2) for budget in grid]
    used = torch.stack([ufs[choice].mean() for choice in choices]).cummax(0).values
    # Where the use does not change over a stretch of budgets, any of them will do: take the first.
    wanted = (_HEADROOM * router.budgets - router_overhead_uf(model)).clamp(used[0], used[-1])
    place = torch.searchsorted(used, wanted).clamp(1, len(grid) - 1)
    low, high = used[place - 1], used[place]
    share = ((wanted - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    router.calibrated_budgets.copy_(grid[place - 1].lerp(grid[place], share))
