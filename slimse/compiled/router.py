"""The router as one compiled call; see `slimse.router.Router`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..router import SHARPNESS, SOFT, Router, RouterState
from .kernels import _jit
from .layout import Floats, Ints


class Heard(NamedTuple):
    """As `RouterState`, in arrays."""

    samples: Floats
    hidden: Floats

    @classmethod
    def of(cls, state: RouterState) -> Heard:
        """A copy."""
        return cls(*(part.numpy().copy() for part in state))

    def tensors(self) -> RouterState:
        """A copy."""
        return RouterState(*(torch.from_numpy(part.copy()) for part in self))


class CompiledRouter:
    """A router with the weights of this moment.

    Args:
        router: float32, on the CPU.
    """

    def __init__(self, router: Router) -> None:
        weights = (
            *(router.conv.weight.t(), router.conv.bias, router.input.weight.t(), router.diagonal, router.bias_hh),
            *(router.output.weight[0], router.bias_ih, router.bias_width, router.budgets, router.asked, router.octaves),
        )
        # The vector axis last.
        self._arrays = [weight.detach().contiguous().numpy().copy() for weight in weights]
        self._hop, self._stride, self._ufs = router.hop, router.config.stride, len(router.ufs)

    def choose(
        self, x: Floats, early: int, frames: int, budget: Floats, state: Heard, shared: bool
    ) -> tuple[Ints, Heard]:
        """Decide for ``frames`` frames of every stream.

        Args:
            x: ``[B, n]``, normalised; silence follows them.
            early: of them, those before the last hop of the first frame, which are context.
            frames: how many.
            budget: ``[B]``, before calibration.
            state: silence, or from the call before. It is not changed.
            shared: one decision for all streams, from the mean of their logits.

        Returns:
            Indices of UFs ``[B, frames]``, and the new state.
        """
        batch, context = state.samples.shape
        signal = np.zeros((batch, context + early + frames * self._hop), np.float32)
        signal[:, :context] = state.samples
        heard = min(x.shape[1], signal.shape[1] - context)
        signal[:, context : context + heard] = x[:, :heard]
        hidden = state.hidden.copy()
        logits = np.empty((batch, frames, self._ufs), np.float32)
        _logits(signal[:, early:], self._hop, self._stride, budget, hidden, *self._arrays, logits)
        if shared:
            logits[:] = logits.mean(0)
        return logits.argmax(2), Heard(signal[:, signal.shape[1] - context :].copy(), hidden)


@_jit
def _place(budget, budgets):
    """The knot below a budget, and how far in octaves it is towards the next."""
    knots = len(budgets)
    place = np.log(budget / budgets[0]) / -np.log(budgets[0]) * (knots - 1)
    low = min(max(int(place), 0), knots - 2)
    return low, np.float32(min(max(place - low, 0.0), 1.0))


@_jit
def _sigmoid(x):
    return np.float32(1) / (np.float32(1) + np.exp(-x))


@_jit
def _logits(
    signal, hop, stride, budget, hidden,
    conv, conv_bias, into, diagonal, bias_hh, out_of, bias_ih, bias_width, budgets, asked, octaves, logits,
):  # fmt: skip
    """Logits of every frame; ``hidden`` is brought forward in place."""
    taps, filters = conv.shape
    units, windows = diagonal.shape[1], hop // stride
    level, window = np.empty(filters, np.float32), np.empty(filters, np.float32)
    gates, fixed = np.empty(3 * units, np.float32), np.empty(3 * units, np.float32)
    soft = np.float32(SOFT)
    for stream in range(len(signal)):
        low, share = _place(budget[stream], budgets)
        calibrated = np.exp(np.log(asked[low]) * (1 - share) + np.log(asked[low + 1]) * share)
        low, share = _place(calibrated, budgets)
        for j in range(3 * units):
            fixed[j] = bias_ih[low, j] * (1 - share) + bias_ih[low + 1, j] * share
        for frame in range(logits.shape[1]):
            level[:] = 0
            for position in range(windows):
                at = frame * hop + position * stride
                window[:] = conv_bias
                for tap in range(taps):
                    x = signal[stream, at + tap]
                    for i in range(filters):
                        window[i] += x * conv[tap, i]
                for i in range(filters):
                    level[i] += max(window[i], np.float32(0))
            gates[:] = fixed
            for i in range(filters):
                x = np.log1p(level[i] / np.float32(windows) / soft) / np.float32(4)
                for j in range(3 * units):
                    gates[j] += x * into[i, j]
            wanted = bias_width[low] * (1 - share) + bias_width[low + 1] * share
            for i in range(units):
                h = hidden[stream, i]
                reset = _sigmoid(gates[i] + diagonal[0, i] * h + bias_hh[0, i])
                update = _sigmoid(gates[units + i] + diagonal[1, i] * h + bias_hh[1, i])
                new = np.tanh(gates[2 * units + i] + reset * (diagonal[2, i] * h + bias_hh[2, i]))
                h = new + update * (h - new)
                hidden[stream, i] = h
                wanted += h * out_of[i]
            for j in range(len(octaves)):
                logits[stream, frame, j] = -np.float32(SHARPNESS) * (wanted - octaves[j]) ** 2
