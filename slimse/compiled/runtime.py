"""The compiled network as a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model import ModelState, SlimModel
from ..networks.demucs import SlimDemucs
from ..runtimes.base import LOUDEST, Options, Runtime, refuse
from ..width import UF, Request
from . import numba_missing

if TYPE_CHECKING:
    from .slots import CompiledSlots


class NumbaSession:
    """Streams side by side; see `slimse.runtimes.Session`. As little as can be happens around the frames.

    In live use the caches are cold at every frame, and each step here costs ten times what it does in a loop.

    Args:
        model: with a `SlimDemucs`.
        options: of the streams.
    """

    def __init__(self, model: SlimModel, options: Options) -> None:
        from .network import CompiledStreams

        self._streams = CompiledStreams(model, options.streams, half=options.half)
        self._ufs, self._options = model.ufs, options
        self._ran = np.zeros((options.streams, 0), np.int64), 0

    @property
    def samples(self) -> int:
        """Samples of each stream that frames have taken."""
        return self._streams.samples

    @property
    def pending(self) -> int:
        """Samples of each stream that do not fill a frame yet."""
        return self._streams.pending

    @property
    def ufs(self) -> Tensor:
        """The UFs of the frames of the last call, ``[streams, frames]``."""
        choice, frames = self._ran
        return self._ufs.at(torch.from_numpy(choice[:, :frames]).expand(self._options.streams, frames))

    def save(self) -> tuple[ModelState, Tensor]:
        """The state, and the samples that do not fill a frame yet."""
        return self._streams.save()

    def load(self, state: ModelState, pending: Tensor) -> None:
        """Go on from there."""
        self._streams.load(state, pending)
        self._ran = self._ran[0], 0

    def feed(self, chunk: Any, request: Request, limit: float) -> tuple[NDArray[np.float32], int]:
        """As of `slimse.runtimes.Session`."""
        if isinstance(chunk, Tensor):
            chunk = chunk.detach().to("cpu", torch.float32).numpy()
        x = np.ascontiguousarray(chunk, np.float32).reshape(self._options.streams, -1)
        # One call where `isfinite` takes two; `refuse` looks closer.
        if not np.vdot(x, x) <= LOUDEST:
            refuse(x)
        frames = self._streams.completed(x.shape[1])
        choice = self._indices(x, frames, request, limit)
        self._ran = choice, frames
        return self._streams.feed(x, choice), frames

    def finish(self, request: Request, limit: float) -> NDArray[np.float32]:
        """As of `slimse.runtimes.Session`."""
        left = self._streams.left
        choice = self._indices(np.zeros((self._options.streams, 0), np.float32), max(left, 1), request, limit)
        self._ran = choice, left
        return self._streams.finish(choice)

    def _indices(self, x: NDArray[np.float32], frames: int, request: Request, limit: float) -> NDArray[np.int64]:
        """Indices of the UFs of the next frames, ``[streams, frames]`` or ``[streams, 1]``, no wider than the limit."""
        if request.uf is not None:
            choice = self._streams.indices(request.uf)
        elif frames:
            assert request.budget is not None
            choice = self._streams.decide(x, frames, request.budget.numpy(), shared=self._options.shared)
        else:
            choice = self._streams.indices(self._ufs[-1])
        return np.minimum(choice, self._ufs.index(limit)) if limit < 1 else choice


class NumbaRuntime(Runtime):
    """The network on the CPU as one compiled call per chunk; see `slimse.compiled`."""

    name = "numba"
    offers = frozenset(("stream", "batch", "whole"))
    compiled = True

    def unavailable(self, model: SlimModel) -> str | None:
        """Why it cannot run a model here, or None if it can."""
        parameter = next(model.parameters())
        if not isinstance(model.network, SlimDemucs):
            return f"the network is a {type(model.network).__name__}, numba has SlimDemucs alone"
        if parameter.device.type != "cpu":
            return f"the model is on {parameter.device}, numba runs on the CPU"
        if parameter.dtype != torch.float32:
            return f"the model is in {parameter.dtype}, numba needs float32"
        if not model.causal:
            return "the model is bidirectional, numba is for causal ones"
        return numba_missing()

    def session(self, model: SlimModel, options: Options) -> NumbaSession:
        """Streams side by side."""
        return NumbaSession(model, options)

    def slots(self, model: SlimModel, capacity: int) -> CompiledSlots:
        """Streams that come and go."""
        from .slots import CompiledSlots

        return CompiledSlots(model, capacity)

    def enhance(self, model: SlimModel, noisy: Tensor, uf: UF, input_std: Tensor | None) -> Tensor:
        """Whole signals."""
        from .network import enhance

        return enhance(model, noisy, uf, input_std)

    @torch.no_grad()
    def route(self, model: SlimModel, noisy: Tensor, budgets: Tensor) -> Tensor:
        """What the router chooses for whole signals."""
        from .router import CompiledRouter, Heard

        state = model.initial_state(len(noisy))
        assert model.router is not None and state.router
        router, heard = CompiledRouter(model.router), Heard.of(state.router)
        normalised, frames = model.normalised(noisy, state)[0].numpy(), model.geometry.frames(noisy.shape[1])
        early = model.geometry.early(0)
        choice, _ = router.choose(normalised, early, frames, budgets.numpy(), heard, shared=False)
        return model.ufs.at(torch.from_numpy(choice))
