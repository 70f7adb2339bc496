"""What the weights of `RoutingLoss` do: average use and shares of the UFs for several beta and gamma.

    python -m bench.routing_ablation DATA --beta 0.1 1 10 --gamma 0 0.1 10

The router learns alone, from what widths are worth frame by frame (`measured`, once for a set of
mixtures): minutes on a CPU instead of hours. Each row varies one weight, the other one is that of the recipe. Shares
are given as sampled over the last fifth of the training, and as the argmax of inference chooses, before calibration.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import slimse
from slimse.hub import DEFAULT
from slimse.training.config import TrainConfig
from slimse.training.data import TrainingData
from slimse.training.losses import EnhancementLoss
from slimse.training.module import rate_factor, temperature_at
from slimse.training.optimizer import MuonAdamW
from slimse.training.routing import RoutingLoss, measured, straight_through_gates
from slimse.training.run import prepare


class Mixtures:
    """Noisy items, and what the widest width gained over the narrowest at each of their frames."""

    def __init__(self, model: slimse.SlimModel, data: Path, config: TrainConfig, count: int) -> None:
        items = TrainingData(data, None, config, model.sample_rate).items(0, count, config.seed, config.seconds)
        loss = EnhancementLoss(spectral=config.spectral, error_level=config.error_level)
        self.noisy, costs = measured(model, loss, items, count, torch.device("cpu")).tensors
        self.frames, self.worth = costs.shape[1], costs[:, :, 0]


def train_router(
    config: TrainConfig, base: slimse.SlimModel, mixtures: Mixtures, budget: float
) -> tuple[Tensor, Tensor]:
    """Shares of the UFs when training for ``budget`` alone, sampled and by argmax: ``[n_ufs]`` each."""
    torch.manual_seed(config.seed)
    bare = slimse.SlimModel(base.config)
    bare.load_state_dict(base.state_dict())
    model = prepare(config, bare)
    router = model.router
    assert router is not None
    loss = RoutingLoss(router, config.beta, config.gamma)
    named = ((f"router.{name}", parameter) for name, parameter in router.named_parameters())
    optimizer = MuonAdamW(named, config.learning_rate, router_rate_factor=config.router_rate_factor)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(config))
    cost = -torch.tensor(model.ufs).log2() / -np.log2(model.ufs[0])
    budgets = torch.full((config.batch,), budget)
    rng = np.random.default_rng(config.seed)
    sampled = []
    for step in range(config.steps):
        part = torch.from_numpy(rng.permutation(len(mixtures.noisy))[: config.batch])
        state = model.initial_state(config.batch)
        logits, _ = model.router_logits(mixtures.noisy[part, 0], state, mixtures.frames, budgets)
        temperature = temperature_at(config, step)
        noise = torch.from_numpy(rng.gumbel(size=logits.shape)).float()
        gates = straight_through_gates(logits, noise, temperature)
        sampled.append(gates.detach().mean((0, 1)))
        use, _ = loss(gates, budgets, router.knot_weights(budgets))
        benefit = (torch.softmax(logits / temperature, -1) @ cost * mixtures.worth[part]).mean()
        optimizer.zero_grad()
        (use + config.benefit_weight * benefit).backward()
        optimizer.step()
        schedule.step()
    chosen = model.route(mixtures.noisy, budget)
    by_argmax = torch.stack([(chosen == uf).float().mean() for uf in model.ufs])
    return torch.stack(sampled[-config.steps // 5 :]).mean(0), by_argmax


def main() -> None:
    """Train and print one row per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="as for `slimse train`")
    parser.add_argument("--weights", default=DEFAULT)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--beta", type=float, nargs="*", default=[0.1, 1.0, 10.0])
    parser.add_argument("--gamma", type=float, nargs="*", default=[0.0, 0.1, 10.0])
    parser.add_argument("--items", type=int, default=120)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainConfig.read("joint").override(steps=options.steps, warmup=options.steps // 10)
    model = slimse.load(options.weights)
    mixtures = Mixtures(model, options.data, config, options.items)
    settings = [config.override(beta=beta) for beta in options.beta]
    settings += [config.override(gamma=gamma) for gamma in options.gamma if gamma != config.gamma]
    ufs = torch.tensor(model.ufs)
    print(f"budget {options.budget:g}, {options.items} mixtures, {options.steps} steps\n")
    columns = " | ".join(f"UF {uf:g}" for uf in ufs.tolist())
    print(f"| beta | gamma | sampled: average UF | {columns} | argmax: average UF | {columns} |")
    print(f"| ---: | ---: |{' ---: |' * (2 + 2 * len(ufs))}")
    for setting in settings:
        cells = [f"{setting.beta:g}", f"{setting.gamma:g}"]
        for shares in train_router(setting, model, mixtures, options.budget):
            cells += [f"{float(shares @ ufs):.3f}", *(f"{share:.0%}" for share in shares.tolist())]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
