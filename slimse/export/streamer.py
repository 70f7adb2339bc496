"""Run an exported model with NumPy and ONNX Runtime alone: no PyTorch, and nothing else of this package.

This file stands by itself. Where PyTorch is not installed, copy it, or load it by its path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

LOUDEST = 1e6
"""Largest sample, full scale being 1, as of `slimse.Streamer`."""
_MODEL_TYPE = "slimse"

_Pieces: TypeAlias = list[NDArray[np.float32]]
_Choice: TypeAlias = dict[str, NDArray[Any]]
"""Inputs of the model that say at which UF it runs."""


class OnnxStreamer:
    """Feed any number of samples of one stream, get back those that are ready; as `slimse.Streamer`.

    The outputs of all `feed` calls and of `flush`, one after the other, are as long as the input and aligned with it.

    Args:
        model: a streaming model that ``slimse export`` wrote, or an ``onnxruntime.InferenceSession`` of one: streams
            can share it.
        uf: for a model of several UFs, the one of every frame; None leaves it to the budget.
        budget: for a model with a router, the average UF that it may spend.
        threads: that ONNX Runtime may use for one call.
        providers: ONNX Runtime's execution providers.

    Raises:
        ValueError: for another model, a UF or a budget that it does not have, or not one of both.

    """

    def __init__(
        self,
        model: str | os.PathLike[str] | onnxruntime.InferenceSession,
        uf: float | None = None,
        *,
        budget: float | None = None,
        threads: int = 1,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        self.session = (
            model if isinstance(model, onnxruntime.InferenceSession) else open_session(model, threads, providers)
        )
        notes = self.session.get_modelmeta().custom_metadata_map
        if notes.get("model_type") != _MODEL_TYPE or notes.get("kind") != "stream":
            kind = f"{notes.get('model_type', 'no model_type')}, {notes.get('kind', 'no kind')}"
            raise ValueError(f"model is of {kind}: expected a streaming model of slimse export")
        self.metadata: Mapping[str, str] = notes
        self.sample_rate, self.hop = int(notes["sample_rate"]), int(notes["hop_length"])
        self.call, self.latency = self.hop * int(notes["frames_per_call"]), int(notes["latency"])
        self.ufs = tuple(float(uf) for uf in notes["ufs"].split(","))
        self._lead, self._delay = int(notes["lead"]), int(notes["delay"])
        self._early = int(notes["early_frames"])
        inputs = {entry.name: entry.shape for entry in self.session.get_inputs()}
        self._outputs = [entry.name for entry in self.session.get_outputs()]
        self._shapes = {name: shape for name, shape in inputs.items() if name.startswith("state_")}
        self._routed, self._several = "budget" in inputs, "uf" in inputs
        self._wanted = self._choice(uf, budget)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample starts a new signal."""
        self._states = self._silence()
        self._pending = np.zeros(self._lead, np.float32)
        self._skip, self._taken, self._given = self._delay, 0, 0
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._ran: _Pieces = []
        self._opening = True

    @property
    def last_ufs(self) -> NDArray[np.float32]:
        """The UFs of the frames that the last `feed` or `flush` ran: ``[frames]``."""
        return np.concatenate([np.zeros(0, np.float32), *self._ran])

    def feed(self, chunk: NDArray[np.floating], uf: float | None = None, budget: float | None = None) -> Any:
        """Take samples ``[n]``, give back those that are ready, ``[m]``, in the dtype of ``chunk``.

        Args:
            chunk: floating-point samples at `sample_rate`, any number of them.
            uf: of the frames that this chunk completes; None for the streamer's own.
            budget: of these frames, instead; None for the streamer's own.

        Raises:
            ValueError: for another shape or dtype, a sample beyond `LOUDEST` or not finite, or a UF or budget that the
                model does not have. The stream is then as it was before.
        """
        wanted = self._wanted if uf is None and budget is None else self._choice(uf, budget)
        if not isinstance(chunk, np.ndarray) or chunk.ndim != 1 or chunk.dtype.kind != "f":
            found = f"{chunk.shape} {chunk.dtype}" if isinstance(chunk, np.ndarray) else type(chunk).__name__
            raise ValueError(f"chunk is {found}: expected a floating-point array [n]")
        samples = chunk.astype(np.float32)
        if not bool((np.abs(samples) <= LOUDEST).all()):
            loud = int(np.argmin(np.abs(samples) <= LOUDEST))
            raise ValueError(f"chunk holds {samples[loud]:g} at sample {loud}: expected at most {LOUDEST:g}")
        self._dtype, self._ran = chunk.dtype, []
        self._taken += len(samples)
        self._pending = np.concatenate([self._pending, samples])
        count = len(self._pending) // self.call
        opening = self._opening and "budget" in wanted
        if opening and count <= self._early:
            return self._ready([])
        calls, self._pending = np.split(self._pending, [count * self.call])
        pieces = list(calls.reshape(-1, self.call))
        outputs: _Pieces = []
        if opening:
            first, pieces = pieces[: self._early + 1], pieces[self._early + 1 :]
            outputs = self._begin(first, None, wanted)
        self._opening = self._opening and not count
        return self._ready([*outputs, *(self._run(piece, wanted) for piece in pieces)])

    def flush(self, uf: float | None = None, budget: float | None = None) -> Any:
        """End the signal: return all that is still missing, ``[m]``, and start anew. Arguments as of `feed`."""
        wanted = self._wanted if uf is None and budget is None else self._choice(uf, budget)
        self._ran = []
        left = self._taken - self._given
        calls, rest = np.split(self._pending, [len(self._pending) // self.call * self.call])
        pieces = list(calls.reshape(-1, self.call))
        if self._opening and "budget" in wanted:
            outputs = self._begin(pieces, rest, wanted)
        else:
            outputs = [*(self._run(piece, wanted) for piece in pieces), self._end(rest, wanted)]
        out, ran = self._ready(outputs)[:left], self._ran
        self.reset()
        self._ran = ran
        return out

    def _begin(self, pieces: _Pieces, rest: NDArray[np.float32] | None, wanted: _Choice) -> _Pieces:
        """The start of a signal of which the router decides.

        It hears the first frame only when the calls before it have run, at widths that were none of its choice. So all
        of them run twice, the second time as it wanted. None of their output was due earlier.
        """
        self._play(pieces, rest, [wanted] * len(pieces), wanted)
        ufs = self.last_ufs
        ufs[: self._early] = ufs[self._early]
        self._states, self._ran = self._silence(), []
        chosen = [{**wanted, "uf": ufs[index : index + 1]} for index in range(len(pieces))]
        return self._play(pieces, rest, chosen, {**wanted, "uf": ufs[len(pieces) :]})

    def _play(
        self, pieces: _Pieces, rest: NDArray[np.float32] | None, choices: list[_Choice], last: _Choice
    ) -> _Pieces:
        outputs = [self._run(piece, choice) for piece, choice in zip(pieces, choices, strict=True)]
        return outputs if rest is None else [*outputs, self._end(rest, last)]

    def _silence(self) -> dict[str, NDArray[np.float32]]:
        """The states of a fresh stream."""
        return {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}

    def _end(self, rest: NDArray[np.float32], wanted: _Choice) -> NDArray[np.float32]:
        """The last call, of fewer samples than a whole one."""
        return self._run(np.pad(rest, (0, self.call - len(rest))), wanted, len(rest))

    def _run(self, samples: NDArray[np.float32], wanted: _Choice, end: int = -1) -> NDArray[np.float32]:
        """One call of the model, whose states are kept; ``end`` samples end the signal."""
        feeds = {"samples": samples[None], "end": np.array([end], np.int32)}
        values = self.session.run(None, {**feeds, **wanted, **self._states})
        results = dict(zip(self._outputs, values, strict=True))
        self._states = {name: results[f"new_{name}"] for name in self._shapes}
        if "ufs" in results:
            self._ran.append(results["ufs"])
        return results["enhanced"][0]

    def _ready(self, outputs: _Pieces) -> NDArray[Any]:
        """Outputs without those that come before the signal."""
        joined = np.concatenate([np.zeros(0, np.float32), *outputs])
        skipped = min(self._skip, len(joined))
        self._skip -= skipped
        self._given += len(joined) - skipped
        return joined[skipped:].astype(self._dtype, copy=False)

    def _choice(self, uf: float | None, budget: float | None) -> _Choice:
        """Inputs of the model that choose the UF."""
        if not self._several:
            if budget is not None or uf not in (None, self.ufs[0]):
                given = f"uf = {uf}" if budget is None else f"budget = {budget}"
                raise ValueError(f"{given}: this model has UF {self.ufs[0]:g} alone")
            return {}
        if (uf is None) == (budget is None):
            raise ValueError(f"uf = {uf} and budget = {budget}: expected one of both")
        if budget is None:
            if uf not in self.ufs:
                raise ValueError(f"uf = {uf!r}: expected one of {self.ufs}")
            chosen = {"uf": np.array([uf], np.float32)}
            return chosen | ({"budget": np.array([self.ufs[-1]], np.float32)} if self._routed else {})
        if not self._routed:
            raise ValueError(f"budget = {budget}: this model has no router; expected uf, one of {self.ufs}")
        if not self.ufs[0] <= budget <= 1:
            raise ValueError(f"budget = {budget!r}: expected an average UF from {self.ufs[0]:g} to 1")
        return {"uf": np.zeros(1, np.float32), "budget": np.array([budget], np.float32)}


def open_session(
    model: str | os.PathLike[str] | bytes, threads: int = 1, providers: tuple[str, ...] = ("CPUExecutionProvider",)
) -> onnxruntime.InferenceSession:
    """A model, from its file or its bytes, that streams can share.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ONNX Runtime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    if not isinstance(model, bytes) and not os.path.isfile(model):
        raise FileNotFoundError(f"no such file: {model}")
    try:
        source = model if isinstance(model, bytes) else os.fspath(model)
        return onnxruntime.InferenceSession(source, options, providers=list(providers))
    except Exception as error:
        name, reason = "model" if isinstance(model, bytes) else model, str(error).splitlines()[0]
        raise ValueError(f"{name}: not a model that ONNX Runtime can run: {reason}") from error
