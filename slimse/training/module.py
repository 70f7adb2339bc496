"""The Lightning module: what one step of each stage trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
import torch.distributed as dist
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

from ..model import SlimModel
from ..width import WidthSet
from .config import TrainConfig
from .data import Pair
from .losses import EnhancementLoss, framed, levelled
from .optimizer import MuonAdamW
from .routing import RoutingLoss, frame_benefit, max_entropy_shares, straight_through_gates
from .sandwich import narrow_passes


class NarrowRun(NamedTuple):
    """What a narrow width made of a part of the batch."""

    part: Tensor
    """Numbers of the items."""
    uf: float
    output: Tensor


class SlimmableTraining(lightning.LightningModule):
    """One step of each stage of the training of a `SlimModel`.

    - ``backbone``: the widest UF on the whole batch, and the smallest, a random one between, or both on a part of
      it; the narrow ones learn from the clean signal and from the widest one's output. In a share of the steps, the
      whole batch at widths that change every few frames instead.
    - ``router``: the router's gates on the whole batch, each item with a budget of its own; all else is frozen. In
      place of clean signals, batches have `frame_costs`, measured beforehand.
    - ``joint``: both together, so that the uniform widths stay good while the router learns.
    - ``fixed``: one width on the whole batch.

    What a step draws depends on the seed, the step and an item's number in the batch of all processes together.

    Args:
        config: of the run.
        model: the network to train, with a router for the stages that have one.
    """

    def __init__(self, config: TrainConfig, model: SlimModel) -> None:
        super().__init__()
        self.model = model
        self.config = config = config.for_model(model.ufs, model.sample_rate)
        self.loss = EnhancementLoss(spectral=config.spectral, error_level=config.error_level, pesq=config.pesq)
        self.routing: RoutingLoss | None = None
        model.requires_grad_(config.stage != "router")
        if model.router is not None:
            model.router.requires_grad_(config.routed)
        if config.routed:
            if model.router is None:
                raise ValueError(f"stage = {config.stage!r}: expected a model with a router")
            self.routing = RoutingLoss(model.router, config.beta, config.gamma)

    def on_train_batch_start(self, batch: Pair, index: int) -> None:
        """Number the log by the steps that were done: Lightning's count is one ahead after a checkpoint was loaded."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def training_step(self, batch: Pair, index: int) -> Tensor:
        """Sum of the losses of this step."""
        stage, widest = self.config.stage, self.model.ufs[-1]
        if stage == "router":
            return self._routed(*batch)[0]
        noisy, clean = batch
        if stage == "fixed":
            loss = self.loss(self.model(noisy, self.config.fixed_uf), clean, noisy)
            self.log(f"train/{self.config.fixed_uf}", loss.detach())
            return loss
        rng = np.random.default_rng([self.config.seed, self.global_step])
        if stage == "backbone" and rng.random() < self.config.switching:
            loss = self.loss(self.model(noisy, self._changing(rng, noisy)), clean, noisy)
            self.log("train/switching", loss.detach())
            return loss
        wide = self.model(noisy, widest)
        loss = self.loss(wide, clean, noisy)
        self.log(f"train/{widest}", loss.detach())
        narrow, runs = self._narrow(rng, noisy, clean, wide.detach())
        loss = loss + narrow
        return loss + self._joined(noisy, clean, wide.detach(), runs) if stage == "joint" else loss

    def _narrow(self, rng: Generator, noisy: Tensor, clean: Tensor, wide: Tensor) -> tuple[Tensor, list[NarrowRun]]:
        config, ufs = self.config, self.model.ufs
        narrow_ufs = [ufs[0], float(rng.choice(ufs[1:-1] or ufs[:1]))] if len(ufs) > 1 else []
        if config.narrow_widths == 1:
            narrow_ufs = narrow_ufs[self.global_step % 2 :][:1]
        # A different part of the batch for each, so that no item is left to the widest width alone for long.
        draws = [(uf, torch.from_numpy(rng.permutation(len(noisy))[: config.narrow_batch])) for uf in narrow_ufs]
        loss = noisy.new_zeros(())
        runs: list[NarrowRun] = []
        for one in narrow_passes(
            self.model,
            (noisy, (clean, noisy)),
            wide,
            draws,
            lambda output, target: self.loss(output, *target),
            lambda output, teacher, target: _distance(output, teacher, target[1]),
            config.distill,
        ):
            assert one.part is not None, "narrow widths get a part of the batch"
            self.log(f"train/{one.uf}", one.own.detach())
            loss = loss + one.own + (0.0 if one.distilled is None else one.distilled)
            runs.append(NarrowRun(one.part, one.uf, one.output.detach()))
        return loss, runs

    @torch.no_grad()
    def _changing(self, rng: Generator, noisy: Tensor) -> Tensor:
        """UFs ``[B, frames]`` that change every few frames: by lot, or as loudness asks for."""
        ufs, frames = self.model.ufs, self.model.geometry.frames(noisy.shape[2])
        if rng.random() < 0.5:
            return ufs.at(wandering(rng, len(noisy), frames, len(ufs)).to(noisy.device))
        budget = torch.from_numpy(_budgets(self.config, rng, len(noisy))).to(noisy.device)
        jitter = torch.from_numpy(rng.normal(scale=4.0, size=(len(noisy), frames))).to(noisy)
        return ufs.at(by_loudness(noisy, budget, self.model.geometry.hop, jitter, ufs))

    def _routed(self, noisy: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the router's choice, whose UFs lose ``costs`` ``[B, frames, n_ufs]``, and the gates it chose."""
        config, model = self.config, self.model
        assert model.router is not None and self.routing is not None
        views = noisy.repeat(config.budgets_per_item, 1, 1)
        frames, items = model.geometry.frames(noisy.shape[2]), len(views)
        budget = self._drawn(items, lambda rng, n: _budgets(config, rng, n)).to(noisy)
        noise = self._drawn(items, lambda rng, n: rng.gumbel(size=(n, frames, len(model.ufs)))).to(noisy)
        logits, _ = model.router_logits(views[:, 0], model.initial_state(items), frames, budget)
        temperature = temperature_at(config, self.global_step)
        gates = straight_through_gates(logits, noise, temperature)
        use, parts = self.routing(gates, budget, model.router.knot_weights(budget))
        shares = torch.softmax(logits / temperature, dim=-1).unflatten(0, (-1, len(noisy))).mean(0)
        benefit = (shares * costs).sum(2).mean()
        self.log_dict({"train/benefit": benefit.detach()} | {f"train/{name}": value for name, value in parts.items()})
        return use + config.benefit_weight * benefit, gates

    def _joined(self, noisy: Tensor, clean: Tensor, wide: Tensor, runs: list[NarrowRun]) -> Tensor:
        """The losses of the router's choice and of the output at it."""
        straight_through, ufs = self.config.straight_through, torch.tensor(self.model.ufs, device=noisy.device)
        hop, frames = self.model.geometry.hop, self.model.geometry.frames(noisy.shape[2])
        costs = noisy.new_zeros(len(noisy), frames, len(ufs))
        for run in runs:
            signals = noisy[run.part], clean[run.part], wide[run.part], run.output
            benefit = frame_benefit(self.loss, *signals, hop, frames).unsqueeze(2)
            # Of widths that did not run, in proportion to their octaves; of items that did not, by those that did.
            share = ufs.log2() / np.log2(run.uf) / self.config.narrow_widths * len(noisy) / len(run.part)
            costs[run.part] += benefit * share
        loss, gates = self._routed(noisy, costs)
        fixed = gates.detach()
        enhanced = self.model(noisy, fixed + straight_through * (gates - fixed) if straight_through else fixed)
        own = self.loss(enhanced, clean, noisy) + self.config.distill * _distance(enhanced, wide, noisy)
        self.log("train/routed", own.detach())
        return own + loss

    def _drawn(self, items: int, draw: Callable[[Generator, int], Any]) -> Tensor:
        """The share of this process in what the step draws for the items of all processes."""
        distributed = dist.is_available() and dist.is_initialized()
        rank, processes = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        rng = np.random.default_rng([self.config.seed, self.global_step, 1])
        return torch.from_numpy(np.asarray(draw(rng, items * processes)[rank::processes], dtype=np.float32))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the run trains, for a later one that wants to go on with it."""
        checkpoint["stage"] = self.config.stage

    def validation_step(self, batch: Pair, index: int) -> None:
        """Log the scores of one pair."""
        for name, value in self.scores(batch).items():
            self.log(name, value, batch_size=1)

    def scores(self, batch: Pair) -> dict[str, Tensor]:
        """SI-SDR and loss of the narrowest and the widest UF, and of the router with the use of its budget."""
        noisy, clean = batch
        config, ufs = self.config, self.model.ufs
        watched: dict[str, float | Tensor] = {str(uf): uf for uf in dict.fromkeys((ufs[0], ufs[-1]))}
        if config.stage == "fixed":
            watched = {str(config.fixed_uf): config.fixed_uf}
        found = {}
        if config.routed:
            assert config.budget_low is not None
            budget = min(max(0.25, config.budget_low), config.budget_high)
            watched["router"] = ufs_chosen = self.model.route(noisy, budget)
            found[f"valid/uf/{budget:g}"] = ufs_chosen.mean()
        for name, uf in watched.items():
            enhanced = self.model(noisy, uf)
            found[f"valid/si_sdr/{name}"] = si_sdr(enhanced.float(), clean).mean()
            found[f"valid/loss/{name}"] = self.loss(enhanced, clean, noisy)
        return found

    def configure_optimizers(self) -> Any:
        """Muon and AdamW; linear warm-up, a plateau, and a tail down to zero."""
        config = self.config
        trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        optimizer = MuonAdamW(
            trained,
            config.learning_rate,
            weight_decay=config.weight_decay,
            router_rate_factor=config.router_rate_factor,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _distance(enhanced: Tensor, teacher: Tensor, noisy: Tensor) -> Tensor:
    """L1 distance from a teacher's output, relative to the level of the noisy signal."""
    found, wanted = levelled(noisy, enhanced, teacher)
    return nn.functional.l1_loss(found, wanted)


def _budgets(config: TrainConfig, rng: Generator, count: int) -> NDArray[np.float32]:
    """Budgets drawn evenly in octaves."""
    low, high = config.budget_low, config.budget_high
    assert low is not None
    return np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(np.float32).clip(low, high)


def wandering(rng: Generator, items: int, frames: int, n_ufs: int) -> Tensor:
    """Indices of UFs ``[items, frames]`` that stay for five frames on average and then are drawn anew, evenly."""
    draws = rng.integers(n_ufs, size=(items, frames))
    stays = rng.random((items, frames)) < 0.8
    stays[:, 0] = False
    latest = np.maximum.accumulate(np.where(stays, 0, np.arange(frames)), axis=1)
    return torch.from_numpy(np.take_along_axis(draws, latest, axis=1))


def by_loudness(noisy: Tensor, budget: Tensor, hop: int, jitter: Tensor, ufs: WidthSet) -> Tensor:
    """Indices of UFs ``[B, frames]``, wider where an item is louder, that use each item's budget.

    An error that is heard, or counted, is mostly one in loud frames. So this is what routers come to, roughly, and it
    makes widths specialise on the frames they will get.

    Args:
        noisy: ``[B, 1, T]``.
        budget: ``[B]``; shares of the UFs are those of `max_entropy_shares`.
        hop: samples per frame.
        jitter: ``[B, frames]``, added to the levels, in dB.
        ufs: what to choose from.
    """
    power = framed(noisy[:, 0], hop, jitter.shape[1]).square().mean(2)
    level = 10 * torch.log10(power + 1e-3 * power.mean(1, keepdim=True) + 1e-20)
    # Around a frame, as a width stays for a few frames.
    level = nn.functional.avg_pool1d((level + jitter).unsqueeze(1), 3, 1, 1, count_include_pad=False)[:, 0]
    rank = level.argsort(1).argsort(1).float() / level.shape[1]
    edges = max_entropy_shares(ufs, budget).cumsum(1)[:, :-1]
    return (rank.unsqueeze(2) >= edges.unsqueeze(1)).sum(2)


def temperature_at(config: TrainConfig, step: int) -> float:
    """Temperature of the gates at a step; see `TrainConfig`."""
    progress = min(1.0, step / max(config.steps * (1 - config.cooldown), 1))
    return float(config.temperature * (config.temperature_end / config.temperature) ** progress)


def rate_factor(config: TrainConfig) -> Callable[[int], float]:
    """The learning rate of every step, in units of its peak."""

    def factor(step: int) -> float:
        tail_start = config.steps * (1 - config.cooldown)
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        if step <= tail_start:
            return warm
        progress = min(1.0, (step - tail_start) / max(config.steps - tail_start, 1))
        return warm * float(1 - progress**0.5)

    return factor
