"""A slimmable model: a network, the level around it, and a router that chooses widths."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .config import PRESETS, ModelConfig
from .hub import Pretrained
from .networks import FrameGeometry, NetworkConfig
from .networks.base import build_network
from .nn import LevelState, RunningLevel
from .ops import check_backend
from .router import NO_ROUTER, Router, RouterState
from .runtimes.base import check_runtime, choose
from .width import UF, AnyUF, Budget, Request, Schedule, WidthSet


class ModelState(NamedTuple):
    """The state of streams between two steps; every tensor has the streams on axis 0.

    It is a value: `SlimModel.step` returns a new one and leaves the old as it was. Copy it, save it (`torch.save`), go
    back to it.
    """

    network: Any
    """Of the network."""
    level: tuple[Tensor, ...]
    """Running: a `LevelState`. Of the whole signal, ``[B, 1]`` each: mean square so far and samples seen, or one given
    deviation. None: empty."""
    router: RouterState | tuple[()]
    """Of a model with a router, whose input is the frames that it decides and no others."""
    samples: int
    """Input samples per stream so far, 0 in a fresh state."""


# Or `torch.load` would refuse what `torch.save` wrote of a stream. Networks add the types of their own states.
torch.serialization.add_safe_globals([ModelState, LevelState, RouterState])


class SlimModel(Pretrained, nn.Module):
    """A slimmable network for whole signals and streams, with the level around it and a router where there is one.

    Args:
        config: a `ModelConfig`, the configuration of a network alone, or the name of a preset (`PRESETS`).
        runtime: what runs frames in inference: ``"eager"`` (the layers), ``"numba"`` (compiled, on the CPU), or
            ``"auto"``, which takes the fastest that can run. See `slimse.runtimes`.
        backend: of the layers: ``"reference"``, ``"triton"`` or ``"auto"``, see `slimse.ops`. A named one implies the
            eager runtime, unless another is named too.
        precision: of float32 products in Triton kernels: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.

    Raises:
        ValueError: for a preset, runtime, backend or precision that there is not. What cannot run raises when called.

    Shape:
        ``[B, 1, T]`` noisy to ``[B, 1, T]`` enhanced at `sample_rate`, any ``T`` of 1 or more.

    >>> model = SlimModel("small")
    >>> model(torch.randn(2, 1, 1000), uf=0.25).shape
    torch.Size([2, 1, 1000])
    """

    def __init__(
        self,
        config: ModelConfig | NetworkConfig | str = "paper",
        *,
        runtime: str = "auto",
        backend: str = "auto",
        precision: str = "ieee",
    ) -> None:
        super().__init__()
        check_runtime(runtime)
        check_backend(backend, precision)
        self.runtime, self.backend = runtime, backend
        if isinstance(config, str):
            if config not in PRESETS:
                raise ValueError(f"preset {config!r}: expected one of {sorted(PRESETS)}")
            config = PRESETS[config]
        self.config = config if isinstance(config, ModelConfig) else ModelConfig(config)
        self.network = build_network(self.config.network, backend=backend, precision=precision)
        router = self.config.router
        self.router = Router(router, self.ufs, self.geometry.hop, self.sample_rate) if router else None
        self.level = RunningLevel(self.sample_rate, backend=backend)

    @property
    def ufs(self) -> WidthSet:
        """The UFs that it was made for."""
        return self.config.network.ufs

    @property
    def sample_rate(self) -> int:
        """Of input and output, Hz."""
        return self.config.network.sample_rate

    @property
    def causal(self) -> bool:
        """Whether it can stream."""
        return self.config.network.causal

    @property
    def geometry(self) -> FrameGeometry:
        """How its samples and frames relate."""
        return self.network.geometry

    def forward(self, noisy: Tensor, uf: AnyUF | None = None, budget: Budget | None = None) -> Tensor:
        """Enhance whole signals.

        Args:
            noisy: ``[B, 1, T]``, samples at `sample_rate`, floating point.
            uf: one of `ufs`; or ``[B]`` or ``[B, frames]`` of them (``geometry.frames(T)``); or, in training, gates
                over the UFs ``[B, frames, len(ufs)]``. Without UF and budget, 1.0.
            budget: target mean UF, averaged over a corpus, a number or ``[B]``: the router chooses the UF of every
                frame, as `route` tells.

        Returns:
            ``[B, 1, T]`` in the dtype of ``noisy``. Compiled runtimes give no gradient.

        Raises:
            ValueError: for another shape, an empty signal, a UF outside the set, both a UF and a budget, or a budget
                without a router.
        """
        self._check(noisy)
        x = noisy[:, 0]
        deviation = None
        if self.config.level == "signal":
            signal = x.to(self._signal_dtype)
            # One sample has no deviation; 0 leaves the floor alone in the denominator.
            deviation = signal.std(1, keepdim=True) if x.shape[1] > 1 else torch.zeros_like(signal)
        request = self.request(uf, budget, x.shape[0])
        if (runtime := self._compiled_runtime(x, request.uf)) is not None:
            out: Tensor = runtime.enhance(self, x, request, deviation)
            return out.unsqueeze(1)
        return self.finish(x, self._whole_state(x, deviation, request), *request).unsqueeze(1)

    def _whole_state(self, x: Tensor, deviation: Tensor | None, request: Request) -> ModelState:
        """`initial_state` for whole signals, without the zeros that one call does not need."""
        none = x.new_empty(len(x), 0, dtype=self._signal_dtype)
        running = LevelState(none, none, none) if self.config.level == "running" else ()
        level = running if deviation is None else (deviation,)
        router = self.router.initial_state(len(x)) if self.router and request.uf is None else ()
        return ModelState(self.network.whole_state(len(x)), level, router, 0)

    def _compiled_runtime(self, x: Tensor, uf: UF | None) -> Any:
        """What runs a whole signal in place of the layers, in inference, where nobody needs its gradient; or None."""
        gates = isinstance(uf, Tensor) and uf.ndim == 3
        traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        plain = x.dtype == torch.float32 and not gates and not traced
        if self.runtime == "auto" and (self.training or torch.is_grad_enabled() or not plain):
            return None
        runtime = choose(None, self, "whole")
        return None if runtime.name == "eager" else runtime

    def route(self, noisy: Tensor, budget: Budget) -> Tensor:
        """The UFs that ``model(noisy, budget=budget)`` runs at: ``[B, frames]`` for ``noisy`` ``[B, 1, T]``."""
        self._check(noisy)
        x, frames = noisy[:, 0], self.geometry.frames(noisy.shape[2])
        budgets = self.request(None, budget, len(x)).budget
        assert budgets is not None
        if (runtime := self._compiled_runtime(x, None)) is not None:
            ufs: Tensor = runtime.route(self, x, budgets)
            return ufs
        return self.decide(x, self.initial_state(len(x)), frames, budgets)[0]

    def request(self, uf: AnyUF | None, budget: Budget | None, batch: int) -> Request:
        """As `WidthSet.request`; raises a `ValueError` also for a budget where there is no router."""
        request = self.ufs.request(uf, budget, batch)
        if request.budget is not None and self.router is None:
            raise ValueError(NO_ROUTER)
        return request

    def _check(self, noisy: Tensor) -> None:
        if noisy.ndim != 3 or noisy.shape[1] != 1 or noisy.shape[2] < 1:
            raise ValueError(f"noisy has shape {tuple(noisy.shape)}: expected [batch, 1, samples], 1 sample or more")
        if not noisy.is_floating_point():
            raise ValueError(f"noisy is {noisy.dtype}: expected a floating-point tensor")

    def initial_state(self, batch: int = 1, input_std: float | Tensor | None = None) -> ModelState:
        """The state before the first sample of ``batch`` streams.

        Args:
            batch: number of streams.
            input_std: only for ``config.level = "signal"``: the deviation to divide by, a number or ``[B, 1]``. Given
                that of the whole signal, streaming equals offline. None estimates it from the samples so far,
                which does not.

        Raises:
            ValueError: for an ``input_std`` where the model has another level.
        """
        signal = next(self.parameters()).new_zeros(batch, 1, dtype=self._signal_dtype)
        level: tuple[Tensor, ...] = ()
        if self.config.level == "signal":
            level = (signal, signal) if input_std is None else (signal + input_std,)
        elif input_std is not None:
            raise ValueError(f"input_std = {input_std} for a model of level {self.config.level!r}: expected None")
        elif self.config.level == "running":
            level = self.level.initial_state(signal[:, 0])
        router = self.router.initial_state(batch) if self.router else ()
        return ModelState(self.network.initial_state(batch), level, router, 0)

    def decide(
        self, samples: Tensor, state: ModelState, frames: int, budget: Budget, *, shared: bool = False
    ) -> tuple[Tensor, ModelState]:
        """Let the router choose the UFs of the next frames, from the samples that a stream has when it computes them.

        Args:
            samples: ``[B, n]``, which the next `step` or `finish` will take.
            state: what it starts from. It is not changed.
            frames: that it will run.
            budget: a number or ``[B]``.
            shared: one decision for all items, from the mean of their logits.

        Returns:
            UFs ``[B, frames]``, and ``state`` with what the router has heard, to pass on with them.

        Raises:
            ValueError: for a model without a router, or a budget out of range.
        """
        budgets = self.request(None, budget, samples.shape[0]).budget
        assert budgets is not None and self.router is not None
        asked = self.router.calibrated(budgets.to(self.router.calibrated_budgets))
        logits, router = self.router_logits(samples, state, frames, asked)
        choice = (logits.mean(0, keepdim=True).expand_as(logits) if shared else logits).argmax(2)
        return self.ufs.at(choice), state._replace(router=router)

    def router_logits(
        self, samples: Tensor, state: ModelState, frames: int, budget: Tensor
    ) -> tuple[Tensor, RouterState]:
        """`Router.forward` on what the next ``frames`` frames bring; silence stands in for samples to come."""
        assert self.router is not None and state.router
        # What precedes the last hop is context.
        early = self.geometry.early(state.samples)
        x, _ = self.normalised(samples, state)
        x = nn.functional.pad(x, (0, early + frames * self.geometry.hop - x.shape[1]))
        context = torch.cat([state.router.samples, x[:, :early]], dim=1)[:, early:]
        return self.router(x[:, early:], budget, state.router._replace(samples=context))

    def step(
        self, samples: Tensor, state: ModelState, uf: AnyUF | None = None, budget: Budget | None = None
    ) -> tuple[Tensor, ModelState]:
        """Run one or more frames of ``B`` streams.

        Args:
            samples: ``[B, n]``: ``geometry.first`` in a stream's first step, then ``geometry.hop``; either plus a hop
                per further frame in the same step.
            state: from `initial_state` or the step before. It is not changed.
            uf: as in `forward`, over the frames of this step.
            budget: as in `forward`.

        Returns:
            All samples that are ready, ``[B, m]``, and the new state. The outputs of all steps and of `finish`, one
            after the other, are what `forward` gives for the whole signal.

        Raises:
            ValueError: for a length that is not a number of frames, or a model that is not causal.
        """
        if not self.causal:
            raise ValueError("a bidirectional model cannot stream: it needs the whole signal")
        hop = self.geometry.hop
        first = self.geometry.early(state.samples) + hop
        extra = samples.shape[1] - first if samples.ndim == 2 else -1
        if extra < 0 or extra % hop:
            raise ValueError(
                f"samples has shape {tuple(samples.shape)}: expected [batch, {first} + a multiple of {hop}]"
            )
        schedule, state = self._schedule(samples, state, 1 + extra // hop, uf, budget)
        return self.run(samples, state, schedule)

    def finish(
        self, samples: Tensor, state: ModelState, uf: AnyUF | None = None, budget: Budget | None = None
    ) -> Tensor:
        """End ``B`` streams: enhance the last samples, and return all outputs that are still missing.

        Args:
            samples: ``[B, n]``, what came after the last `step`; may be empty.
            state: from `initial_state` or the step before. It is not changed.
            uf: as in `forward`, over the frames that are left, which are those of the whole signal less those
                already run. Where none is left, the UF of the last one, which owns the tail.
            budget: as in `forward`.

        Returns:
            ``[B, m]``: the rest; with all that the steps gave, as many samples as went in.
        """
        geometry = self.geometry
        total = state.samples + samples.shape[1]
        if total == 0:
            return samples
        left = geometry.frames_left(state.samples, samples.shape[1])
        schedule, state = self._schedule(samples, state, max(left, 1), uf, budget)
        out, _ = self.run(samples, state, schedule, pad=geometry.span(geometry.frames(total)) - total, final=True)
        return out[:, : total - geometry.emitted(geometry.frames_done(state.samples))]

    def _schedule(
        self, samples: Tensor, state: ModelState, frames: int, uf: AnyUF | None, budget: Budget | None
    ) -> tuple[Schedule, ModelState]:
        """Resolve what a caller passed, with the router where it is asked."""
        chosen, budgets = self.request(uf, budget, samples.shape[0])
        if budgets is not None:
            chosen, state = self.decide(samples, state, frames, budgets)
        assert chosen is not None
        chosen = chosen.to(samples.device) if isinstance(chosen, Tensor) else chosen
        return self.ufs.schedule(chosen, samples.shape[0], frames), state

    def extract(self, uf: float) -> SlimModel:
        """One width as a smaller model of `torch.nn` layers, with copies of the weights it needs and no router.

        It streams, and is saved and loaded, as any other. Its UF is 1.0.

        Raises:
            ValueError: for a UF outside the set, or a network that cannot be extracted from.
        """
        network = self.network.extract(uf)
        plain = SlimModel(ModelConfig(network.config, level=self.config.level, floor=self.config.floor))
        plain.network = network
        plain.runtime, plain.backend = self.runtime, self.backend
        return plain.to(next(self.parameters())).train(self.training)

    @property
    def _signal_dtype(self) -> torch.dtype:
        """Levels are computed in at least float32, whatever the weights are."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def normalised(self, samples: Tensor, state: ModelState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next samples ``[B, n]`` as the network and its router take them, and the level behind them."""
        x, level = samples.to(self._signal_dtype), state.level
        if self.config.level == "running":
            return self.level(x, LevelState(*level))
        if len(level) == 2 and x.shape[1]:
            mean, seen = level
            total = seen + x.shape[1]
            level = (mean + (x.square().mean(1, keepdim=True) - mean) * (x.shape[1] / total), total)
        return (x / (self.config.floor + _deviation(level)) if level else x), level

    def run(
        self, samples: Tensor, state: ModelState, schedule: Schedule, *, pad: int = 0, final: bool = False
    ) -> tuple[Tensor, ModelState]:
        """Run the network on ``samples`` and ``pad`` samples of silence, between level off and level on.

        What `step` and `finish` do once they know the widths.
        """
        x, level = self.normalised(samples, state)
        x = nn.functional.pad(x, (0, pad))
        out, network = self.network.step(x, state.network, schedule, final=final)
        if self.config.level == "running":
            sums, seen, gain = level
            # Outputs of the silence behind the end have no gain.
            ready = min(out.shape[1], gain.shape[1])
            out = out[:, :ready] * gain[:, :ready]
            level = LevelState(sums, seen, gain[:, ready:] if final else gain[:, ready:].clone())
        elif level:
            out = out * _deviation(level)
        total = state.samples + x.shape[1]
        return out.to(samples.dtype), ModelState(network, level, state.router, total)


def _deviation(level: tuple[Tensor, ...]) -> Tensor:
    """Of the whole signal, given or as far as it is known: ``[B, 1]``."""
    return level[0] if len(level) == 1 else level[0].sqrt()
