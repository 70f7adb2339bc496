"""The model's layers, one call after the other, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model import ModelState, SlimModel
from ..width import UF, Request
from .base import LOUDEST, STEP_FRAMES, Options, Runtime, refuse
from .slots import EagerSlots


class EagerSession:
    """Streams side by side on the layers; see `slimse.runtimes.Session`.

    Args:
        model: a causal model.
        options: how many streams, and whether they share decisions.
    """

    def __init__(self, model: SlimModel, options: Options) -> None:
        self._model, self._options = model, options
        self._state: ModelState
        self._pending: Tensor

    @property
    def samples(self) -> int:
        """Samples of each stream that frames have taken."""
        return self._state.samples

    @property
    def pending(self) -> int:
        """Samples of each stream that do not fill a frame yet."""
        return self._pending.shape[1]

    @property
    def ufs(self) -> Tensor:
        """The UFs of the frames of the last call, ``[streams, frames]``."""
        return self._ran

    def save(self) -> tuple[ModelState, Tensor]:
        """The state, and the samples that do not fill a frame yet."""
        return self._state, self._pending

    def load(self, state: ModelState, pending: Tensor) -> None:
        """Go on from there."""
        self._state, self._pending = state, pending
        self._ran = pending[:, :0]

    @torch.no_grad()
    def feed(self, chunk: Any, request: Request, limit: float) -> tuple[Tensor, int]:
        """As of `slimse.runtimes.Session`."""
        samples = torch.as_tensor(chunk).reshape(self._options.streams, -1).to(self._pending)
        if not bool((samples.abs() <= LOUDEST).all()):
            refuse(samples.cpu().numpy())
        pending = torch.cat([self._pending, samples], dim=1)
        geometry, state, outputs, ufs = self._model.geometry, self._state, [], []
        while frames := max((pending.shape[1] - geometry.early(state.samples)) // geometry.hop, 0):
            frames = min(frames, STEP_FRAMES)
            used = geometry.early(state.samples) + frames * geometry.hop
            chosen, state = self._decided(pending[:, :used], state, frames, request, limit)
            out, state = self._model.step(pending[:, :used], state, chosen)
            outputs.append(out)
            ufs.append(self._per_frame(chosen, frames))
            pending = pending[:, used:]
        self._state, self._pending = state, pending.clone()
        self._ran = torch.cat(ufs, dim=1) if ufs else samples[:, :0]
        return torch.cat(outputs, dim=1) if outputs else samples[:, :0], self._ran.shape[1]

    @torch.no_grad()
    def finish(self, request: Request, limit: float) -> Tensor:
        """As of `slimse.runtimes.Session`."""
        left = self._model.geometry.frames_left(self.samples, self.pending)
        chosen, state = self._decided(self._pending, self._state, max(left, 1), request, limit)
        out = self._model.finish(self._pending, state, chosen)
        self._ran = self._per_frame(chosen, left)
        return out

    def _decided(
        self, samples: Tensor, state: ModelState, frames: int, request: Request, limit: float
    ) -> tuple[UF, ModelState]:
        """The UFs of the next frames, as given or from the router, and no wider than the limit."""
        chosen = request.uf
        if request.budget is not None:
            chosen, state = self._model.decide(samples, state, frames, request.budget, shared=self._options.shared)
        assert chosen is not None
        if limit < 1:
            chosen = chosen.clamp(max=limit) if isinstance(chosen, Tensor) else min(chosen, limit)
        return chosen, state

    def _per_frame(self, chosen: UF, frames: int) -> Tensor:
        """UFs ``[streams, frames]``."""
        ufs = torch.as_tensor(chosen, device=self._pending.device)
        if ufs.ndim:
            # Where nothing is left to run, the one that was chosen says only how the tail runs.
            ufs = ufs.reshape(self._options.streams, -1)[:, :frames]
        return ufs.expand(self._options.streams, frames)


class EagerRuntime(Runtime):
    """The layers, on their backend."""

    name = "eager"
    offers = frozenset(("stream", "batch", "whole"))

    def session(self, model: SlimModel, options: Options) -> EagerSession:
        """Streams side by side."""
        if options.weights is not None:
            raise ValueError(
                f"weights = {options.weights!r}: expected None, as this streamer does not run on a compiled runtime"
            )
        return EagerSession(model, options)

    def slots(self, model: SlimModel, capacity: int) -> EagerSlots:
        """Streams that come and go."""
        return EagerSlots(model, capacity)
