"""The slimmable waveform U-Net, offline and frame by frame through the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compiled import use_compiled
from ..nn import DecoderBlock, EncoderBlock, GroupedGRU, SincDownsample, SincUpsample, SlimLSTMStack
from ..nn.resample import LOOKAHEAD
from ..width import UF, FrameMap, Schedule
from .config import PRESETS, SlimDemucsConfig
from .initial import initialise
from .plain import PlainDemucs


class DemucsState(NamedTuple):
    """All that a stream remembers between two steps; every tensor has the streams as its leading (or second) axis.

    It is a value: `SlimDemucs.step` returns a new one and leaves the old as it was. Copy it, save it
    (`torch.save`), go back to it. Lengths along time differ between a fresh state and one that has seen its first
    frame, and are constant from then on.
    """

    up: tuple[Tensor, ...]
    """Per up-sampling stage, samples that later outputs need: ``[B, n]``."""
    encoder: tuple[Tensor, ...]
    """Per level, inputs that later windows share: ``[B, n, C_in]``."""
    skip: tuple[Tensor, ...]
    """Per level, encoder outputs that the decoder has not used yet: ``[B, n, C]``."""
    rnn: tuple[Tensor, ...]
    """Grouped GRU: ``[M, B, H]``. LSTM: ``h`` and ``c`` of every layer, ``[B, H]`` each."""
    decoder: tuple[Tensor, ...]
    """Per level, shallowest first, outputs that await an overlap: ``[B, K - S, C_out]`` (empty at the start)."""
    down: tuple[Tensor, ...]
    """Per down-sampling stage, samples that later outputs need: ``[B, n]``."""
    level: tuple[Tensor, ...]
    """Of a normalising model, ``[B, 1]`` each: mean square so far and samples seen, or one given deviation."""
    samples: int
    """Input samples per stream so far, 0 in a fresh state."""

    def stream(self, index: int) -> DemucsState:
        """One of the streams, as views."""
        return self._map(lambda axis, part: part.narrow(axis, index, 1))

    def put(self, index: int, one: DemucsState) -> None:
        """Overwrite one of the streams, in place. Both states have seen their first frame."""
        for mine, theirs in zip(self.stream(index)[:-1], one[:-1], strict=True):
            for old, new in zip(mine, theirs, strict=True):
                old.copy_(new)

    @staticmethod
    def stack(states: Sequence[DemucsState]) -> DemucsState:
        """Streams that have seen as many samples side by side."""
        rest = iter(list(zip(*(_parts(state) for state in states), strict=True)))
        return states[0]._map(lambda axis, _: torch.cat(next(rest), axis))

    def _map(self, change: Callable[[int, Tensor], Tensor]) -> DemucsState:
        """Apply ``change(axis of the streams, tensor)``; the grouped GRU has its groups first."""
        groups: dict[str, Any] = {
            name: tuple(change(int(name == "rnn" and part.ndim == 3), part) for part in getattr(self, name))
            for name in self._fields
            if name != "samples"
        }
        return self._replace(**groups)


class SlimDemucs(nn.Module):
    """A causal DEMUCS whose blocks run at any of several widths from one set of weights.

    Args:
        config: a `SlimDemucsConfig` or the name of a preset (`PRESETS`).

    Shape:
        ``[B, 1, T]`` noisy to ``[B, 1, T]`` enhanced at ``config.sample_rate``, any ``T`` of 1 or more.

    Source: arXiv 2507.04879 (slimming), arXiv 2006.12847 (the network).

    >>> model = SlimDemucs("small")
    >>> model(torch.randn(2, 1, 1000), uf=0.25).shape
    torch.Size([2, 1, 1000])
    """

    def __init__(self, config: SlimDemucsConfig | str = "paper") -> None:
        super().__init__()
        if isinstance(config, str):
            if config not in PRESETS:
                raise ValueError(f"preset {config!r}: expected one of {sorted(PRESETS)}")
            config = PRESETS[config]
        self.config = config
        c, k, s = config.channels, config.kernel_size, config.stride
        self.frame_map = FrameMap(config.depth, k, s)
        stages = config.resample.bit_length() - 1
        levels = range(1, config.depth + 1)
        # The annotations say what the lists hold; `ModuleList` cannot.
        self.up: Sequence[SincUpsample]
        self.down: Sequence[SincDownsample]
        self.encoder: Sequence[EncoderBlock]
        self.decoder: Sequence[DecoderBlock]
        modules: dict[str, Sequence[nn.Module]] = {
            "up": [SincUpsample() for _ in range(stages)],
            "down": [SincDownsample() for _ in range(stages)],
            "encoder": [EncoderBlock(c(i - 1), c(i), k, s) for i in levels],
            "decoder": [DecoderBlock(c(i), c(i - 1), k, s, relu=i > 1) for i in levels],
        }
        for name, members in modules.items():
            self.add_module(name, nn.ModuleList(members))
        self.bottleneck: GroupedGRU | SlimLSTMStack
        if config.rnn == "gru":
            self.bottleneck = GroupedGRU(c(config.depth), config.groups)
        else:
            self.bottleneck = SlimLSTMStack(c(config.depth), config.rnn_layers, bidirectional=not config.causal)
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

    def frames_left(self, state: DemucsState, samples: int) -> int:
        """Frames that `finish` has to run when the signal ends ``samples`` samples after ``state``; may be 0."""
        total = state.samples + samples
        return self.frames(total) - self.frames_done(state.samples) if total else 0

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

    def forward(self, noisy: Tensor, uf: UF = 1.0, *, backend: str = "auto") -> Tensor:
        """Enhance whole signals.

        Args:
            noisy: ``[B, 1, T]``, samples at ``config.sample_rate``, floating point.
            uf: one of ``config.ufs``; or ``[B]`` or ``[B, frames(T)]`` of them; or, in training, gates over the
                UFs ``[B, frames(T), len(config.ufs)]``.
            backend: ``"numba"`` is the compiled path (`slimse.compiled`), for inference in float32 on the CPU;
                ``"torch"`` runs everywhere. ``"auto"`` takes the first in evaluation mode without gradients.

        Returns:
            ``[B, 1, T]`` in the dtype of ``noisy``. The compiled path gives no gradient.

        Raises:
            ValueError: for another shape, an empty signal, a UF outside the set, or a backend that cannot run.
        """
        if noisy.ndim != 3 or noisy.shape[1] != 1 or noisy.shape[2] < 1:
            raise ValueError(f"noisy has shape {tuple(noisy.shape)}: expected [batch, 1, samples], 1 sample or more")
        if not noisy.is_floating_point():
            raise ValueError(f"noisy is {noisy.dtype}: expected a floating-point tensor")
        x = noisy[:, 0]
        deviation = None
        if self.config.normalize:
            signal = x.to(self._signal_dtype)
            # One sample has no deviation; 0 leaves the floor alone in the denominator.
            deviation = signal.std(1, keepdim=True) if x.shape[1] > 1 else torch.zeros_like(signal)
        gates = isinstance(uf, Tensor) and uf.ndim == 3
        traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        plain = x.dtype == torch.float32 and not gates and not traced
        if backend == "auto" and (self.training or torch.is_grad_enabled() or not plain):
            backend = "torch"
        if backend != "torch" and use_compiled(backend, self):
            from ..compiled.network import enhance

            return enhance(self, x, uf, deviation).unsqueeze(1)
        return self.finish(x, self.initial_state(x.shape[0], deviation), uf).unsqueeze(1)

    def initial_state(self, batch: int = 1, input_std: float | Tensor | None = None) -> DemucsState:
        """The state before the first sample of ``batch`` streams.

        Args:
            batch: number of streams.
            input_std: only for a model with ``normalize``: the deviation to divide by, a number or ``[B, 1]``. Given
                that of the whole signal, streaming equals offline. None estimates it from the samples so far,
                which does not.

        Raises:
            ValueError: for an ``input_std`` where the model does not normalise.
        """
        like = next(self.parameters())
        signal = like.new_zeros(batch, 1, dtype=self._signal_dtype)
        level: tuple[Tensor, ...] = ()
        if self.config.normalize:
            level = (signal, signal) if input_std is None else (signal + input_std,)
        elif input_std is not None:
            raise ValueError(f"input_std = {input_std}: this model does not normalise its input; expected None")
        empty = tuple(like.new_zeros(batch, 0, self.config.channels(i)) for i in range(self.config.depth + 1))
        return DemucsState(
            up=tuple(stage.initial_buffer(signal) for stage in self.up),
            encoder=empty[:-1],
            skip=empty[1:],
            rnn=self.bottleneck.initial_state(batch, like),
            decoder=empty[:-1],
            down=tuple(stage.initial_buffer(signal) for stage in self.down),
            level=level,
            samples=0,
        )

    def step(self, samples: Tensor, state: DemucsState, uf: UF = 1.0) -> tuple[Tensor, DemucsState]:
        """Run one or more frames of ``B`` streams.

        Args:
            samples: ``[B, n]``: `first_samples` in a stream's first step, then `hop`; either plus ``hop`` per
                further frame in the same step.
            state: from `initial_state` or the step before. It is not changed.
            uf: as in `forward`, over the frames of this step.

        Returns:
            All samples that are ready, ``[B, m]``, and the new state. The outputs of all steps and of `finish`, one
            after the other, are what `forward` gives for the whole signal.

        Raises:
            ValueError: for a length that is not a number of frames, or a model that is not causal.
        """
        if not self.config.causal:
            raise ValueError("a bidirectional model cannot stream: it needs the whole signal")
        first = self.hop if state.samples else self.first_samples
        extra = samples.shape[1] - first if samples.ndim == 2 else -1
        if extra < 0 or extra % self.hop:
            raise ValueError(
                f"samples has shape {tuple(samples.shape)}: expected [batch, {first} + a multiple of {self.hop}]"
            )
        schedule = self.config.ufs.schedule(uf, samples.shape[0], 1 + extra // self.hop)
        return self._levelled(samples, 0, state, schedule, final=False)

    def finish(self, samples: Tensor, state: DemucsState, uf: UF = 1.0) -> Tensor:
        """End ``B`` streams: enhance the last samples, and all that was still on its way.

        Args:
            samples: ``[B, n]``, what came after the last `step`; may be empty.
            state: from `initial_state` or the step before. It is not changed.
            uf: as in `forward`, over the frames that are left, which are `frames` of the whole signal less those
                already run. Where none is left, the UF of the last one, which owns the tail.

        Returns:
            ``[B, m]``: the rest; with all that the steps gave, as many samples as went in.
        """
        total = state.samples + samples.shape[1]
        if total == 0:
            return samples
        left = self.frames_left(state, samples.shape[1])
        schedule = self.config.ufs.schedule(uf, samples.shape[0], max(left, 1))
        pad = self.receptive_samples(self.frames(total)) - total
        out, _ = self._levelled(samples, pad, state, schedule, final=True)
        return out[:, : total - self.emitted(self.frames_done(state.samples))]

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

    def _levelled(
        self, samples: Tensor, pad: int, state: DemucsState, schedule: Schedule, *, final: bool
    ) -> tuple[Tensor, DemucsState]:
        """`_run` on ``samples`` and ``pad`` samples of silence, between a normalising model's division and product."""
        x = samples.to(self._signal_dtype)
        reference = self.config.reference_level
        if not state.level:
            out, new = self._run(nn.functional.pad(x / reference, (0, pad)), state, schedule, final=final)
            return (out * reference).to(samples.dtype), new
        level = state.level
        if len(level) == 2 and x.shape[1]:
            mean, seen = level
            total = seen + x.shape[1]
            level = (mean + (x.square().mean(1, keepdim=True) - mean) * (x.shape[1] / total), total)
        scale = level[0] if len(level) == 1 else level[0].sqrt()
        x = nn.functional.pad(x / (self.config.floor + scale) / reference, (0, pad))
        out, new = self._run(x, state._replace(level=level), schedule, final=final)
        return (out * scale * reference).to(samples.dtype), new

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
            h = self.decoder[level - 1](h + skip, schedule.width(config.channels(level), frame))
            tail = state.decoder[level - 1]
            if tail.shape[1]:
                h = torch.cat([h[:, :overlap] + tail, h[:, overlap:]], dim=1)
            decoder_tail.append(h[:, positions * config.stride :].clone())
            h = self.decoder[level - 1].activate(h if final else h[:, : positions * config.stride])

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
            samples,
        )


def _parts(state: DemucsState) -> list[Tensor]:
    return [part for group in state[:-1] for part in group]


def _join(earlier: Tensor, later: Tensor) -> Tensor:
    """Both along time; no copy where there is nothing earlier, which offline is always."""
    return torch.cat([earlier, later], dim=1) if earlier.shape[1] else later
