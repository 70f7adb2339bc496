"""What the package asks of a runtime, and the registry of those that it knows. It knows no network and no model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..width import Request

if TYPE_CHECKING:
    from ..model import ModelState, SlimModel

STEP_FRAMES = 256
"""Most frames of one step of a stream: bounds the memory that a long chunk takes."""
WEIGHTS = ("float32", "float16", "int8")
"""Number formats in which a compiled runtime can keep weights."""
LOUDEST = 1e6
"""Largest sample, full scale being 1: beyond, squares of samples inside the network leave the range of float32."""


class Options(NamedTuple):
    """How streams are run."""

    streams: int = 1
    """Side by side, all with chunks of one length."""
    shared: bool = False
    """The router decides for all of them alike."""
    weights: str | None = None
    """One of `WEIGHTS`, to which weights are rounded; None for what holds them exactly."""


class Session(Protocol):
    """Streams side by side, as a `slimse.Streamer` runs them."""

    @property
    def samples(self) -> int:
        """Samples of each stream that frames have taken."""

    @property
    def pending(self) -> int:
        """Samples of each stream that do not fill a frame yet."""

    @property
    def ufs(self) -> Tensor:
        """The UFs of the frames of the last call, ``[streams, frames]``."""

    def feed(self, chunk: Any, request: Request, limit: float) -> tuple[Any, int]:
        """Take a chunk ``[streams, n]``, a tensor or an array, and run the frames that it completes.

        Args:
            chunk: floating point.
            request: checked already, of one UF or budget per stream.
            limit: UF that no frame exceeds.

        Returns:
            What is ready, ``[streams, m]``, a tensor or an array in float32, and how many frames ran.

        Raises:
            ValueError: for a sample beyond `LOUDEST` or not finite (see `refuse`); the streams are then as before.
        """

    def finish(self, request: Request, limit: float) -> Any:
        """Return all that is missing, ``[streams, m]``. Only `load` may follow."""

    def save(self) -> tuple[ModelState, Tensor]:
        """The state, and ``[streams, n]`` samples that do not fill a frame yet."""

    def load(self, state: ModelState, pending: Tensor) -> None:
        """Continue from what `save` returned."""


class Slots(Protocol):
    """Streams that come and go, as a `slimse.serving.StreamBatch` runs them."""

    @property
    def choice(self) -> Tensor:
        """Index of the UF of every slot's last frame, ``[capacity]``."""

    def join(self, slot: int) -> None:
        """Begin a stream."""

    def want(self, slot: int, uf: float | None, budget: float | None) -> None:
        """Set the UF or budget of its frames from now on: exactly one of the two."""

    def tick(self, samples: Tensor) -> tuple[Tensor, list[int]]:
        """Run a frame of all streams; see `slimse.serving.StreamBatch.tick`."""

    def leave(self, slot: int) -> Tensor:
        """End a stream, and give back all that is still missing of it."""


class Runtime:
    """Base of runtimes. One offers some of `session`, `slots`, and `enhance` with `route`, and says which."""

    name: str
    offers: frozenset[str] = frozenset()
    """Of ``"stream"`` (`session`), ``"batch"`` (`slots`) and ``"whole"`` (`enhance`, `route`)."""
    compiled: bool = False
    """Whether it has kernels of its own, in place of the model's layers and their backend."""

    def unavailable(self, model: SlimModel) -> str | None:
        """Why it cannot run a model here, or None if it can."""
        return None

    def session(self, model: SlimModel, options: Options) -> Session:
        """A new session. `Session.load` comes first."""
        raise NotImplementedError

    def slots(self, model: SlimModel, capacity: int) -> Slots:
        """New slots for streams that join and leave."""
        raise NotImplementedError

    def enhance(self, model: SlimModel, noisy: Tensor, request: Request, input_std: Tensor | None) -> Tensor:
        """Whole signals ``[B, T]``.

        Args:
            model: to run.
            noisy: ``[B, T]``.
            request: checked already; UFs as in `slimse.SlimModel.forward`, or one budget per signal.
            input_std: as in `slimse.SlimModel.initial_state`.
        """
        raise NotImplementedError

    def route(self, model: SlimModel, noisy: Tensor, budgets: Tensor) -> Tensor:
        """The UFs ``[B, frames]`` that the router chooses for whole signals ``[B, T]`` and budgets ``[B]``."""
        raise NotImplementedError


RUNTIMES: dict[str, str | Runtime] = {
    "numba": "slimse.runtimes.numba.runtime:NumbaRuntime",
    "cuda-graph": "slimse.runtimes.slots:GraphRuntime",
    "eager": "slimse.runtimes.eager:EagerRuntime",
}
"""Runtimes by name, in the order in which ``"auto"`` tries them; ``module:class`` is imported on first use."""


def register(name: str, runtime: Runtime | str, *, first: bool = True) -> None:
    """Make a runtime known by ``name``; ``"auto"`` tries it first or last.

    Args:
        name: any but ``"auto"``.
        runtime: it, or ``module:class`` to import on first use.
        first: whether to try it before all others.

    Raises:
        ValueError: for a name that another runtime has.
    """
    if name in RUNTIMES or name == "auto":
        raise ValueError(f"runtime {name!r} is registered already: expected another name than {list(RUNTIMES)}")
    others = dict(RUNTIMES)
    RUNTIMES.clear()
    RUNTIMES.update({name: runtime, **others} if first else {**others, name: runtime})


def check_runtime(name: str) -> None:
    """Raise a `ValueError` for a name that no runtime has."""
    if name != "auto" and name not in RUNTIMES:
        raise ValueError(f"runtime = {name!r}: expected one of {['auto', *RUNTIMES]}")


def get_runtime(name: str) -> Runtime:
    """The runtime of a name, imported if need be."""
    check_runtime(name)
    found = RUNTIMES[name]
    if isinstance(found, str):
        module, _, kind = found.partition(":")
        found = getattr(importlib.import_module(module), kind)()
        assert isinstance(found, Runtime)
        RUNTIMES[name] = found
    return found


def unavailable(name: str, model: SlimModel, purpose: str) -> str | None:
    """Why a runtime cannot run a model for a purpose (see `Runtime.offers`), or None if it can."""
    runtime = get_runtime(name)
    if purpose not in runtime.offers:
        return f"it offers {sorted(runtime.offers)}, not {purpose!r}"
    return runtime.unavailable(model)


def choose(name: str | None, model: SlimModel, purpose: str) -> Runtime:
    """What a request for a runtime means.

    Args:
        name: None for the model's own; ``"auto"`` for the first that can run. It passes over compiled runtimes where
            the model's backend was named.
        model: to run.
        purpose: of `Runtime.offers`.

    Raises:
        ValueError: for another name, or one that cannot run here.
    """
    name = model.runtime if name is None else name
    if name == "auto":
        for known in list(RUNTIMES):
            if get_runtime(known).compiled and model.backend != "auto":
                continue
            if unavailable(known, model, purpose) is None:
                return get_runtime(known)
    reason = unavailable("eager" if name == "auto" else name, model, purpose)
    if reason is not None:
        raise ValueError(f"runtime = {name!r} cannot run here: {reason}")
    return get_runtime(name)


def refuse(x: NDArray[np.float32], rows: str | None = None) -> None:
    """Raise for the first sample that is not finite or too loud, as it would stay in the state.

    Args:
        x: ``[rows, n]``.
        rows: what the rows are called in the message, ``""`` to leave it out; None for ``"stream"`` of several.

    Raises:
        ValueError: which names the sample.
    """
    rows = ("stream" if len(x) > 1 else "") if rows is None else rows
    for row, position in np.argwhere(~(np.abs(x) <= LOUDEST)):
        place = f"sample {position}" + (f" of {rows} {row}" if rows else "")
        expected = f"finite samples of at most {LOUDEST:g}"
        raise ValueError(f"chunk holds {x[row, position]:g} at {place}: expected {expected}; none was taken")
