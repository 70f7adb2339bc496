"""The compiled network as a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...model import ModelState, SlimModel
from ...networks.demucs import SlimDemucs
from ...width import Request
from ..base import LOUDEST, Options, Runtime, refuse
from . import numba_missing

if TYPE_CHECKING:
    from .slots import CompiledSlots

KINDS = {"float32": "float32", "float16": "uint16", "int8": "int8"}
"""Dtype of the array that holds the weights, by the name of their number format."""


class NumbaSession:
    """Streams side by side; see `slimse.runtimes.Session`. As little as can be happens around the frames.

    In live use the caches are cold at every frame, and each step here costs ten times what it does in a loop.

    Args:
        model: with a `SlimDemucs`.
        options: of the streams.
    """

    def __init__(self, model: SlimModel, options: Options) -> None:
        from .network import CompiledStreams

        kind = None if options.weights is None else KINDS[options.weights]
        self._streams = CompiledStreams(model, options.streams, weights=kind, shared=options.shared, loudest=LOUDEST)
        self._model, self._rows = model, options.streams
        self._wanted: tuple[Request | None, float] = None, 1.0
        """What the next frames run at."""

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
        return self._model.ufs.at(torch.from_numpy(self._streams.ran))

    def save(self) -> tuple[ModelState, Tensor]:
        """The state, and the samples that do not fill a frame yet."""
        return self._streams.save()

    def load(self, state: ModelState, pending: Tensor) -> None:
        """Go on from there."""
        self._streams.load(state, pending)

    def feed(self, chunk: Any, request: Request, limit: float) -> tuple[Any, int]:
        """As of `slimse.runtimes.Session`."""
        self._want(request, limit)
        out: Tensor | NDArray[np.float32] | None
        if isinstance(chunk, Tensor):
            tensor = chunk.detach().to("cpu", torch.float32).contiguous()
            out = self._streams.feed_tensor(tensor)
            x = tensor.numpy()
        else:
            x = np.ascontiguousarray(chunk, np.float32)
            out = self._streams.feed(x)
        if out is None:
            refuse(x.reshape(self._rows, -1))
        return out, self._streams.frames_ran

    def finish(self, request: Request, limit: float) -> NDArray[np.float32]:
        """As of `slimse.runtimes.Session`."""
        self._want(request, limit)
        return self._streams.finish(self._model.geometry.frames_left(self.samples, self.pending))

    def _want(self, request: Request, limit: float) -> None:
        known, before = self._wanted
        if request is not known or limit != before:
            ufs = self._model.ufs
            self._streams.want(*request, ufs.index(limit) if limit < 1 else len(ufs) - 1)
            self._wanted = request, limit


class NumbaRuntime(Runtime):
    """The network on the CPU as one compiled call per chunk; see `slimse.runtimes.numba`."""

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

    def enhance(self, model: SlimModel, noisy: Tensor, request: Request, input_std: Tensor | None) -> Tensor:
        """Whole signals."""
        from .network import enhance

        return enhance(model, noisy, request.uf, input_std, request.budget)

    def route(self, model: SlimModel, noisy: Tensor, budgets: Tensor) -> Tensor:
        """What the router chooses for whole signals."""
        from .network import route

        return route(model, noisy, budgets)
