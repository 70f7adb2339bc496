"""The slimmable waveform U-Net, offline and frame by frame through the same code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..compiled import use_compiled
from ..nn import (
    DecoderBlock,
    EncoderBlock,
    GroupedGRU,
    LevelState,
    RunningLevel,
    SincDownsample,
    SincUpsample,
    SlimLSTMStack,
)
from ..nn.resample import LOOKAHEAD
from ..ops import check_backend
from ..width import UF, AnyUF, Budget, FrameMap, Request, Schedule
from .config import PRESETS, SlimDemucsConfig
from .initial import initialise
from .plain import PlainDemucs
from .router import NO_ROUTER, Router, RouterState
from .state import DemucsState


class SlimDemucs(nn.Module):
    """A causal DEMUCS whose blocks run at any of several widths from one set of weights.

    Args:
        config: a `SlimDemucsConfig` or the name of a preset (`PRESETS`).
        backend: ``"torch"`` or ``"triton"`` run the layers, see `slimse.ops`; ``"numba"`` runs whole signals and
            streams on the CPU, without a gradient, see `slimse.compiled`. ``"auto"`` takes the fastest that can run.
        precision: of float32 products in Triton kernels: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.

    Raises:
        ValueError: for a preset, backend or precision that there is not. A backend that cannot run raises when called.

    Shape:
        ``[B, 1, T]`` noisy to ``[B, 1, T]`` enhanced at ``config.sample_rate``, any ``T`` of 1 or more.

    Source: arXiv 2507.04879 (slimming), arXiv 2006.12847 (the network).

    >>> model = SlimDemucs("small")
    >>> model(torch.randn(2, 1, 1000), uf=0.25).shape
    torch.Size([2, 1, 1000])
    """

    def __init__(
        self, config: SlimDemucsConfig | str = "paper", *, backend: str = "auto", precision: str = "ieee"
    ) -> None:
        super().__init__()
        layers = "torch" if backend == "numba" else backend
        check_backend(layers, precision)
        self.backend = backend
        if isinstance(config, str):
            if config not in PRESETS:
                raise ValueError(f"preset {config!r}: expected one of {sorted(PRESETS)}")
            config = PRESETS[config]
        self.config = config
        c, k, s = config.channels, config.kernel_size, config.stride
        self.frame_map = FrameMap(config.depth, k, s)
        stages = config.resample.bit_length() - 1
        levels = range(1, config.depth + 1)
        choice = {"backend": layers, "precision": precision}
        # The annotations say what the lists hold; `ModuleList` cannot.
        self.up: Sequence[SincUpsample]
        self.down: Sequence[SincDownsample]
        self.encoder: Sequence[EncoderBlock]
        self.decoder: Sequence[DecoderBlock]
        modules: dict[str, Sequence[nn.Module]] = {
            "up": [SincUpsample() for _ in range(stages)],
            "down": [SincDownsample() for _ in range(stages)],
            "encoder": [EncoderBlock(c(i - 1), c(i), k, s, **choice) for i in levels],
            "decoder": [DecoderBlock(c(i), c(i - 1), k, s, relu=i > 1, **choice) for i in levels],
        }
        for name, members in modules.items():
            self.add_module(name, nn.ModuleList(members))
        self.bottleneck: GroupedGRU | SlimLSTMStack
        if config.rnn == "gru":
            self.bottleneck = GroupedGRU(c(config.depth), config.groups, **choice)
        else:
            two = not config.causal
            self.bottleneck = SlimLSTMStack(c(config.depth), config.rnn_layers, bidirectional=two, **choice)
        self.router = Router(config.router, config.ufs, self.hop, config.sample_rate) if config.router else None
        self.level = RunningLevel(config.sample_rate)
        initialise(self)

    # Sizes -----------------------------------------------------------------------------------------------------

    @property
    def hop(self) -> int:
        """Input samples per frame (256 in the ``paper`` preset, 16 ms)."""
        return self.frame_map.rate(0) // self.config.resample

    def receptive_samples(self, frames: int) -> int:
        """Input samples, without the resampling filters, that ``frames`` frames span."""
        return (self.frame_map.lead(0) + 1) // self.config.resample + (frames - 1) * self.hop

    def frames(self, samples: int) -> int:
        """Frames of an offline call of ``samples`` samples: the columns of a ``[B, frames]`` tensor of UFs."""
        return max(1, 1 - (self.receptive_samples(1) - samples) // self.hop)

    @property
    def first_samples(self) -> int:
        """Samples that a stream's first `step` needs; every later one needs `hop` per frame."""
        need = self.frame_map.lead(0) + 1
        for _ in self.up:
            need = -(-need // 2) + LOOKAHEAD
        return need

    def frames_done(self, samples: int) -> int:
        """Frames that a stream can run once ``samples`` samples have come in."""
        return max(0, 1 + (samples - self.first_samples) // self.hop)

    def frames_left(self, done: int, samples: int) -> int:
        """Frames that `finish` has to run when the signal ends ``samples`` samples behind ``done``; may be 0."""
        total = done + samples
        return self.frames(total) - self.frames_done(done) if total else 0

    def emitted(self, frames: int) -> int:
        """Output samples that are ready once ``frames`` frames have run."""
        ready = frames * self.frame_map.rate(0)
        for _ in self.down:
            ready = max(ready // 2 - (LOOKAHEAD - 1), 0)
        return ready

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples: output ``n`` is ready once input ``n + latency`` has come in.

        That is the worst case over a frame, buffering of the frame included; most outputs come earlier.

        Raises:
            ValueError: for a bidirectional model, which needs the whole signal.
        """
        if not self.config.causal:
            raise ValueError("a bidirectional model has no latency: it needs the whole signal")
        first = 1
        while not self.emitted(first):
            first += 1
        # The first output waits for the first frames; from then on, each frame's first output waits the longest.
        start = self.first_samples + (first - 1) * self.hop - 1
        return max(start, start + self.hop - self.emitted(first))

    # Offline and streaming -------------------------------------------------------------------------------------

    def forward(self, noisy: Tensor, uf: AnyUF | None = None, budget: Budget | None = None) -> Tensor:
        """Enhance whole signals.

        Args:
            noisy: ``[B, 1, T]``, samples at ``config.sample_rate``, floating point.
            uf: one of ``config.ufs``; or ``[B]`` or ``[B, frames(T)]`` of them; or, in training, gates over the
                UFs ``[B, frames(T), len(config.ufs)]``. Without UF and budget, 1.0.
            budget: target mean UF, averaged over a corpus, a number or ``[B]``: the router chooses the UF of every
                frame, as `route` tells.

        Returns:
            ``[B, 1, T]`` in the dtype of ``noisy``. The compiled path gives no gradient.

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
        if self._runs_compiled(x, request.uf):
            from ..compiled.network import enhance

            chosen = self.route(noisy, request.budget) if request.budget is not None else request.uf
            assert chosen is not None
            return enhance(self, x, chosen, deviation).unsqueeze(1)
        return self.finish(x, self.initial_state(x.shape[0], deviation), *request).unsqueeze(1)

    def _runs_compiled(self, x: Tensor, uf: UF | None) -> bool:
        """Whether a whole signal runs on the compiled path: in inference, where nobody needs its gradient."""
        gates = isinstance(uf, Tensor) and uf.ndim == 3
        traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        plain = x.dtype == torch.float32 and not gates and not traced
        if self.backend == "auto" and (self.training or torch.is_grad_enabled() or not plain):
            return False
        return use_compiled(self.backend, self)

    def route(self, noisy: Tensor, budget: Budget) -> Tensor:
        """The UFs that ``model(noisy, budget=budget)`` runs at: ``[B, frames(T)]`` for ``noisy`` ``[B, 1, T]``."""
        self._check(noisy)
        x, frames, state = noisy[:, 0], self.frames(noisy.shape[2]), self.initial_state(noisy.shape[0])
        if self.router is None or not self._runs_compiled(x, None):
            return self.decide(x, state, frames, budget)[0]
        from ..compiled.router import CompiledRouter, Heard

        budgets = self.request(None, budget, len(x)).budget
        assert budgets is not None and state.router
        router, heard = CompiledRouter(self.router), Heard.of(state.router)
        normalised = self.normalised(x, state)[0].numpy()
        choice, _ = router.choose(normalised, self.early(0), frames, budgets.numpy(), heard, shared=False)
        return self.config.ufs.at(torch.from_numpy(choice))

    def request(self, uf: AnyUF | None, budget: Budget | None, batch: int) -> Request:
        """As `WidthSet.request`; raises a `ValueError` also for a budget where there is no router."""
        request = self.config.ufs.request(uf, budget, batch)
        if request.budget is not None and self.router is None:
            raise ValueError(NO_ROUTER)
        return request

    def _check(self, noisy: Tensor) -> None:
        if noisy.ndim != 3 or noisy.shape[1] != 1 or noisy.shape[2] < 1:
            raise ValueError(f"noisy has shape {tuple(noisy.shape)}: expected [batch, 1, samples], 1 sample or more")
        if not noisy.is_floating_point():
            raise ValueError(f"noisy is {noisy.dtype}: expected a floating-point tensor")

    def initial_state(self, batch: int = 1, input_std: float | Tensor | None = None) -> DemucsState:
        """The state before the first sample of ``batch`` streams.

        Args:
            batch: number of streams.
            input_std: only for ``config.level = "signal"``: the deviation to divide by, a number or ``[B, 1]``. Given
                that of the whole signal, streaming equals offline. None estimates it from the samples so far,
                which does not.

        Raises:
            ValueError: for an ``input_std`` where the model has another level.
        """
        like = next(self.parameters())
        signal = like.new_zeros(batch, 1, dtype=self._signal_dtype)
        level: tuple[Tensor, ...] = ()
        if self.config.level == "signal":
            level = (signal, signal) if input_std is None else (signal + input_std,)
        elif input_std is not None:
            raise ValueError(f"input_std = {input_std} for a model of level {self.config.level!r}: expected None")
        elif self.config.level == "running":
            level = self.level.initial_state(signal[:, 0])
        empty = tuple(like.new_zeros(batch, 0, self.config.channels(i)) for i in range(self.config.depth + 1))
        return DemucsState(
            up=tuple(stage.initial_buffer(signal) for stage in self.up),
            encoder=empty[:-1],
            skip=empty[1:],
            rnn=self.bottleneck.initial_state(batch, like),
            decoder=empty[:-1],
            down=tuple(stage.initial_buffer(signal) for stage in self.down),
            level=level,
            router=self.router.initial_state(batch) if self.router else (),
            samples=0,
        )

    def decide(
        self, samples: Tensor, state: DemucsState, frames: int, budget: Budget, *, shared: bool = False
    ) -> tuple[Tensor, DemucsState]:
        """What the router says of the next frames, from the samples that a stream has when it computes them.

        Args:
            samples: what the next `step` or `finish` takes, ``[B, n]``.
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
        asked = self.router.calibrated(budgets.to(self.router.asked))
        logits, router = self.router_logits(samples, state, frames, asked)
        choice = (logits.mean(0, keepdim=True).expand_as(logits) if shared else logits).argmax(2)
        return self.config.ufs.at(choice), state._replace(router=router)

    def early(self, samples: int) -> int:
        """Samples that the next frame brings besides a hop, ``samples`` after the start: the first brings more."""
        return 0 if samples else self.first_samples - self.hop

    def router_logits(
        self, samples: Tensor, state: DemucsState, frames: int, budget: Tensor
    ) -> tuple[Tensor, RouterState]:
        """`Router.forward` on what the next ``frames`` frames bring; silence stands in for samples to come."""
        assert self.router is not None and state.router
        # What precedes the last hop is context.
        early = self.early(state.samples)
        x, _ = self.normalised(samples, state)
        x = nn.functional.pad(x, (0, early + frames * self.hop - x.shape[1]))
        context = torch.cat([state.router.samples, x[:, :early]], dim=1)[:, early:]
        return self.router(x[:, early:], budget, state.router._replace(samples=context))

    def step(
        self, samples: Tensor, state: DemucsState, uf: AnyUF | None = None, budget: Budget | None = None
    ) -> tuple[Tensor, DemucsState]:
        """Run one or more frames of ``B`` streams.

        Args:
            samples: ``[B, n]``: `first_samples` in a stream's first step, then `hop`; either plus ``hop`` per
                further frame in the same step.
            state: from `initial_state` or the step before. It is not changed.
            uf: as in `forward`, over the frames of this step.
            budget: as in `forward`.

        Returns:
            All samples that are ready, ``[B, m]``, and the new state. The outputs of all steps and of `finish`, one
            after the other, are what `forward` gives for the whole signal.

        Raises:
            ValueError: for a length that is not a number of frames, or a model that is not causal.
        """
        if not self.config.causal:
            raise ValueError("a bidirectional model cannot stream: it needs the whole signal")
        first = self.early(state.samples) + self.hop
        extra = samples.shape[1] - first if samples.ndim == 2 else -1
        if extra < 0 or extra % self.hop:
            raise ValueError(
                f"samples has shape {tuple(samples.shape)}: expected [batch, {first} + a multiple of {self.hop}]"
            )
        schedule, state = self._schedule(samples, state, 1 + extra // self.hop, uf, budget)
        return self._levelled(samples, 0, state, schedule, final=False)

    def finish(
        self, samples: Tensor, state: DemucsState, uf: AnyUF | None = None, budget: Budget | None = None
    ) -> Tensor:
        """End ``B`` streams: enhance the last samples, and all that was still on its way.

        Args:
            samples: ``[B, n]``, what came after the last `step`; may be empty.
            state: from `initial_state` or the step before. It is not changed.
            uf: as in `forward`, over the frames that are left, which are `frames` of the whole signal less those
                already run. Where none is left, the UF of the last one, which owns the tail.
            budget: as in `forward`.

        Returns:
            ``[B, m]``: the rest; with all that the steps gave, as many samples as went in.
        """
        total = state.samples + samples.shape[1]
        if total == 0:
            return samples
        left = self.frames_left(state.samples, samples.shape[1])
        schedule, state = self._schedule(samples, state, max(left, 1), uf, budget)
        pad = self.receptive_samples(self.frames(total)) - total
        out, _ = self._levelled(samples, pad, state, schedule, final=True)
        return out[:, : total - self.emitted(self.frames_done(state.samples))]

    def _schedule(
        self, samples: Tensor, state: DemucsState, frames: int, uf: AnyUF | None, budget: Budget | None
    ) -> tuple[Schedule, DemucsState]:
        """Resolve what a caller passed, with the router where it is asked."""
        chosen, budgets = self.request(uf, budget, samples.shape[0])
        if budgets is not None:
            chosen, state = self.decide(samples, state, frames, budgets)
        assert chosen is not None
        chosen = chosen.to(samples.device) if isinstance(chosen, Tensor) else chosen
        return self.config.ufs.schedule(chosen, samples.shape[0], frames), state

    def extract(self, uf: float) -> PlainDemucs:
        """One width as a smaller network of `torch.nn` layers, with copies of the weights it needs.

        Raises:
            ValueError: for a UF outside the set.
        """
        return PlainDemucs(self, uf).to(next(self.parameters())).train(self.training)

    @property
    def _signal_dtype(self) -> torch.dtype:
        """Resampling and levels are computed in at least float32, whatever the weights are."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def normalised(self, samples: Tensor, state: DemucsState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next samples ``[B, n]`` as the network and its router take them, and the level behind them."""
        x, level = samples.to(self._signal_dtype), state.level
        if self.config.level == "running":
            return self.level(x, LevelState(*level))
        if len(level) == 2 and x.shape[1]:
            mean, seen = level
            total = seen + x.shape[1]
            level = (mean + (x.square().mean(1, keepdim=True) - mean) * (x.shape[1] / total), total)
        return (x / (self.config.floor + _deviation(level)) if level else x), level

    def _levelled(
        self, samples: Tensor, pad: int, state: DemucsState, schedule: Schedule, *, final: bool
    ) -> tuple[Tensor, DemucsState]:
        """`_run` on ``samples`` and ``pad`` samples of silence, between the division by the level and the product."""
        x, level = self.normalised(samples, state)
        out, new = self._run(nn.functional.pad(x, (0, pad)), state, schedule, final=final)
        if self.config.level == "running":
            sums, seen, gain = level
            # Outputs of the silence behind the end have no gain.
            ready = min(out.shape[1], gain.shape[1])
            out = out[:, :ready] * gain[:, :ready]
            level = LevelState(sums, seen, gain[:, ready:].clone())
        elif level:
            out = out * _deviation(level)
        return out.to(samples.dtype), new._replace(level=level)

    def _run(self, x: Tensor, state: DemucsState, schedule: Schedule, *, final: bool) -> tuple[Tensor, DemucsState]:
        """Push ``[B, n]`` samples through; ``final`` also gives out what awaits samples that never come."""
        config, frame_map, device = self.config, self.frame_map, x.device
        samples = state.samples + x.shape[1]
        up, encoder_in, skips, decoder_tail, down = [], [], [], [], []
        for stage, buffer in zip(self.up, state.up, strict=True):
            x, buffer = stage(x, buffer, final=final)
            up.append(buffer)

        h = x.unsqueeze(-1).to(self.encoder[0].conv_weight.dtype)
        for level, block in enumerate(self.encoder, start=1):
            h = _join(state.encoder[level - 1], h)
            positions = block.positions(h.shape[1])
            frame = frame_map.encoder_frames(level, positions, first=state.samples == 0, device=device)
            out = block(h, schedule.width(config.channels(level), frame))
            encoder_in.append(h[:, positions * config.stride :].clone())
            skips.append(_join(state.skip[level - 1], out))
            h = out

        frames = h.shape[1]
        frame = torch.arange(frames, device=device)
        h, rnn = self.bottleneck(h, schedule.width(config.channels(config.depth), frame), state.rnn)

        overlap = config.kernel_size - config.stride
        for level in range(config.depth, 0, -1):
            positions = h.shape[1]
            frame = frame_map.decoder_frames(level, positions, max(frames, 1), device=device)
            skip, skips[level - 1] = skips[level - 1].split([positions, skips[level - 1].shape[1] - positions], dim=1)
            decoder, tail = self.decoder[level - 1], state.decoder[level - 1]
            # Offline nothing awaits an overlap.
            whole = final and not tail.shape[1]
            h = decoder(h, schedule.width(config.channels(level), frame), skip, activate=whole)
            if tail.shape[1]:
                h = torch.cat([h[:, :overlap] + tail, h[:, overlap:]], dim=1)
            decoder_tail.append(h[:, positions * config.stride :].clone())
            h = h if whole else decoder.activate(h if final else h[:, : positions * config.stride])

        x = h.squeeze(-1).to(x.dtype)
        for half, buffer in zip(self.down, state.down, strict=True):
            x, buffer = half(x, buffer, final=final)
            down.append(buffer)
        return x, DemucsState(
            tuple(up),
            tuple(encoder_in),
            tuple(skip.clone() for skip in skips),
            rnn,
            tuple(reversed(decoder_tail)),
            tuple(down),
            state.level,
            state.router,
            samples,
        )


def _deviation(level: tuple[Tensor, ...]) -> Tensor:
    """Of the whole signal, given or as far as it is known: ``[B, 1]``."""
    return level[0] if len(level) == 1 else level[0].sqrt()


def _join(earlier: Tensor, later: Tensor) -> Tensor:
    """Both along time; no copy where there is nothing earlier, which offline is always."""
    return torch.cat([earlier, later], dim=1) if earlier.shape[1] else later
