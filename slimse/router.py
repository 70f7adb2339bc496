"""The router: from the noisy input and a budget to one utilization factor per frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .ops import diagonal_gru
from .width import WidthSet

NO_ROUTER = "these weights have no router, so nothing can choose by a budget: expected a UF, or weights with a router"


@dataclass(frozen=True)
class RouterConfig:
    """Sizes of a `Router`.

    Args:
        filters: channels of the convolution on the noisy input.
        kernel_size: its taps, 8 ms at 16 kHz.
        stride: samples between its windows; must divide the model's samples per frame.
        units: of the diagonal GRU.
        knots: budgets at which the conditions are learnt; between them they are interpolated.

    Raises:
        ValueError: for values that do not fit together.
    """

    filters: int = 48
    kernel_size: int = 128
    stride: int = 32
    units: int = 64
    knots: int = 10

    def fewest_weights(self) -> int:
        """Weights of the convolution, the recurrent layer and the tables alone."""
        return self.filters * self.kernel_size + self.units * (3 * self.filters + self.knots)

    def __post_init__(self) -> None:
        """Check that the values fit together."""
        for f in fields(self):
            value = getattr(self, f.name)
            least = 2 if f.name == "knots" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{f.name} = {value!r} of a router: expected an integer, {least} or more")
        if self.kernel_size < self.stride:
            raise ValueError(f"kernel_size = {self.kernel_size} of a router: expected at least stride = {self.stride}")


class RouterState(NamedTuple):
    """What the router remembers of a stream between two frames."""

    samples: Tensor
    """The last inputs that the next windows share: ``[B, kernel_size - stride]``."""
    hidden: Tensor
    """Of the recurrent layer: ``[B, units]``."""


class Router(nn.Module):
    """Predict a width per frame: strided convolution, ReLU, diagonal GRU, pointwise convolution.

    Every frame takes ``hop`` new samples. The rectified outputs of the windows among them are averaged and
    compressed by ``log1p``: what the recurrent layer sees are levels of bands in a logarithmic measure, so that a
    change of level moves them all alike, and the ratio of loud to soft that tells speech from noise stays. The
    initial weights of the convolution are windowed cosines and sines at mel-spaced frequencies.

    The output is one number per frame, the predicted width in octaves. The logit of a UF falls with the square of its
    distance from it (an ordinal head), so that neighbouring UFs follow each other. docs/design-notes.md says why.

    The budget conditions the biases of the recurrent layer and of the width: both are tables over budgets, evenly
    spaced in octaves and read by linear interpolation. Before training, the predicted width is the budget.

    Args:
        config: sizes.
        ufs: what to choose from.
        hop: samples per frame, a multiple of ``config.stride``.
        sample_rate: Hz.

    Raises:
        ValueError: for a stride that does not divide ``hop``.

    Source: R of arXiv 2507.04879; budget, average, compression, order and initialization are this project's choice.
    """

    budgets: Tensor
    """Budgets of the rows of both tables: ``[knots]``, rising in even octaves from the smallest UF to 1."""
    calibrated_budgets: Tensor
    """What the router is given so that it spends each of `budgets` on average, as `calibrate` measured: ``[knots]``,
    rising."""
    octaves: Tensor
    """Of the UFs: ``[len(ufs)]``."""

    def __init__(self, config: RouterConfig, ufs: WidthSet, hop: int, sample_rate: int) -> None:
        super().__init__()
        if hop % config.stride:
            raise ValueError(f"stride = {config.stride} of the router: expected a divisor of {hop} samples per frame")
        self.config, self.ufs, self.hop = config, ufs, hop
        # One input channel: the convolution is a product of windows.
        self.conv = nn.Linear(config.kernel_size, config.filters)
        self.input = nn.Linear(config.filters, 3 * config.units, bias=False)
        self.diagonal = nn.Parameter(torch.zeros(3, config.units))
        self.bias_hh = nn.Parameter(torch.zeros(3, config.units))
        self.output = nn.Linear(config.units, 1, bias=False)
        budgets = torch.logspace(0, 1, config.knots, base=1 / ufs[0]) * ufs[0]
        self.register_buffer("budgets", budgets, persistent=False)
        self.register_buffer("calibrated_budgets", budgets.clone())
        self.bias_ih = nn.Parameter(torch.zeros(config.knots, 3 * config.units))
        self.bias_width = nn.Parameter(budgets.log2())
        self.register_buffer("octaves", torch.tensor(ufs).log2(), persistent=False)
        self._initialise(sample_rate)

    @torch.no_grad()
    def _initialise(self, sample_rate: int) -> None:
        taps, bands = self.config.kernel_size, self.config.filters // 2
        low, high = (1127 * math.log1p(edge / 700) for edge in (100, 0.45 * sample_rate))
        mel = torch.linspace(low, high, bands)
        phase = 2 * torch.pi * (700 * torch.expm1(mel / 1127) / sample_rate).unsqueeze(1) * torch.arange(taps)
        waves = torch.cat([phase.cos(), phase.sin()]) * torch.hann_window(taps, periodic=False)
        self.conv.weight.normal_(std=0.1)
        self.conv.weight[: 2 * bands] = waves / waves.norm(dim=1, keepdim=True)
        self.conv.bias.zero_()
        # Units that forget within 1 to 100 frames: a level of noise has to be remembered over a second of speech.
        self.bias_ih[:, self.config.units : 2 * self.config.units] = torch.linspace(1, 100, self.config.units).log()
        self.output.weight.mul_(0.1)

    def initial_state(self, batch: int) -> RouterState:
        """Silence before the signal."""
        context = self.config.kernel_size - self.config.stride
        return RouterState(self.diagonal.new_zeros(batch, context), self.diagonal.new_zeros(batch, self.config.units))

    def forward(self, samples: Tensor, budget: Tensor, state: RouterState) -> tuple[Tensor, RouterState]:
        """Logits of the next frames.

        Args:
            samples: ``[B, frames * hop]``, in units of the model's reference level.
            budget: ``[B]``, each from the smallest UF to 1.
            state: from `initial_state` or the call before.

        Returns:
            ``[B, frames, len(ufs)]``, and the new state.
        """
        # Decisions are compared with each other: autocast must not round what they rest on.
        with torch.autocast(samples.device.type, enabled=False):
            signal = torch.cat([state.samples, samples.to(state.samples)], dim=1)
            logits, hidden = self.logits(self.levels(signal), budget, state.hidden)
        return logits, RouterState(signal[:, signal.shape[1] - state.samples.shape[1] :].clone(), hidden)

    def levels(self, signal: Tensor) -> Tensor:
        """Compressed band levels ``[B, frames, filters]`` of the context and ``frames`` hops of samples."""
        windows = signal.unfold(1, self.config.kernel_size, self.config.stride)
        rectified = torch.relu(self.conv(windows)).unflatten(1, (-1, self.hop // self.config.stride))
        return torch.log1p(rectified.mean(2) / SOFT) / 4

    def logits(self, levels: Tensor, budget: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, frames, n_ufs]`` for what `levels` gave, and the new state of the recurrent layer."""
        weights = self.knot_weights(budget)
        bias_ih, bias_width = weights @ self.bias_ih, weights @ self.bias_width
        gates = (self.input(levels) + bias_ih.unsqueeze(1)).unflatten(2, (3, self.config.units))
        outputs, hidden = diagonal_gru(gates, self.diagonal, self.bias_hh, hidden)
        wanted = self.output(outputs) + bias_width[:, None, None]
        return -SHARPNESS * (wanted - self.octaves).square(), hidden

    def knot_weights(self, budget: Tensor) -> Tensor:
        """Shares ``[B, knots]`` of the two knots between which each of ``[B]`` budgets lies, in octaves.

        A budget out of range, such as one below the smallest UF, counts as the nearest in range.
        """
        knots = self.config.knots
        place = torch.log(budget / self.ufs[0]) / -torch.log(self.budgets[0]) * (knots - 1)
        place = place.clamp(0, knots - 1)
        return (1 - (place.unsqueeze(1) - torch.arange(knots, device=place.device)).abs()).clamp(min=0)

    def calibrated(self, budget: Tensor) -> Tensor:
        """The budget to ask for, so that ``budget`` (``[B]``) is met on sound like that of the calibration."""
        with torch.autocast(budget.device.type, enabled=False):
            return (self.knot_weights(budget) @ self.calibrated_budgets.log()).exp()

    def count(self, args: tuple[Tensor, Tensor, RouterState], output: tuple[Tensor, RouterState]) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made, the budget given anew at every frame; bytes read."""
        frames = output[0].shape[1]
        conditions = 2 * (3 * self.config.units + 1)
        per_frame = self.hop // self.config.stride * self.conv.weight.numel() + conditions
        per_frame += self.input.weight.numel() + self.diagonal.numel() + self.output.weight.numel() + len(self.ufs)
        read = sum(p.numel() for p in self.parameters()) - (self.config.knots - 2) * conditions // 2
        return frames * per_frame, read * self.diagonal.element_size()


SHARPNESS = 2.0
"""By how much the logit of a UF falls at an octave from the width that is wanted."""

SOFT = 1e-3
"""Rectified level, 60 dB below the reference level, under which `log1p` no longer tells levels apart."""
