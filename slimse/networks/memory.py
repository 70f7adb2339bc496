"""What the code of a network remembers along time: zeros that it pads on the left, states of recurrent layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..nn import Axis, SlimLayer
from ..nn.context import at

_RECURRENT = {torch.gru: 1, torch.lstm: 2}
"""Recurrences, and tensors of their state."""


class Slot(NamedTuple):
    """What one call of a network remembers."""

    call: int
    """Its number among the calls that may remember."""
    shape: tuple[int, ...]
    """For one stream, all channels. The first axis has what the network folds into the batch, such as frequencies."""
    channel: int
    """Axis of the channels."""
    cut: Axis
    """What a UF cuts of them."""
    time: int
    """Axis along time of what is padded; 0 for a state of a recurrent layer."""


class _Call(NamedTuple):
    """A call that may remember, as it was seen."""

    func: Any
    shape: tuple[int, ...]
    """Of the input."""
    pad: tuple[int, ...]
    """Of a padding with zeros; of a recurrent layer whether it is bidirectional, nothing for a packed sequence."""
    state: tuple[tuple[int, ...], ...]


class _Calls(TorchFunctionMode):
    """Sees every call that may remember."""

    number = -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.pad:
            self.number += 1
            return self.pad(*args, **kwargs)
        if func in _RECURRENT:
            self.number += 1
            return self.recur(func, args, kwargs)
        return func(*args, **kwargs)

    def pad(self, x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
        """`torch.nn.functional.pad`."""
        raise NotImplementedError

    def recur(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`torch.gru` or `torch.lstm`."""
        raise NotImplementedError


class _Watch(_Calls):
    """Notes the calls of a network, and which slimmable layer reads what was padded."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.readers: dict[int, SlimLayer] = {}
        self._unread: list[int] = []

    def pad(self, x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
        zeros = mode == "constant" and not value
        self.calls.append(_Call(F.pad, tuple(x.shape), tuple(pad) if zeros else (), ()))
        self._unread.append(self.number)
        return F.pad(x, pad, mode, value)

    def recur(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = args[1] if isinstance(args[1], tuple | list) else (args[1],)
        packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()
        both = () if packed else (int(bool(args[7])),)
        self.calls.append(_Call(func, tuple(args[0].shape), both, tuple(tuple(part.shape) for part in state)))
        return func(*args, **kwargs)

    def read(self, layer: nn.Module, *_: Any) -> None:
        """A layer runs, on what was padded before it."""
        assert isinstance(layer, SlimLayer)
        self.readers |= dict.fromkeys(self._unread, layer)
        self._unread = []


class Chunk(_Calls):
    """While it is entered, a network goes on from where its last chunk ended.

    Args:
        slots: of the network.
        parts: what each remembers, ``[B, *slot.shape]``.
        uf: a number that all streams run at.
    """

    def __init__(self, slots: Iterable[Slot], parts: list[Tensor], uf: float) -> None:
        super().__init__()
        self._slots: dict[int, list[tuple[int, Slot]]] = {}
        for index, slot in enumerate(slots):
            self._slots.setdefault(slot.call, []).append((index, slot))
        self._parts, self._new, self._uf = parts, list[Tensor | None]([None] * len(parts)), uf

    def after(self) -> list[Tensor]:
        """What each remembers after the chunk."""
        assert all(part is not None for part in self._new), "a network runs all that it did when it was made"
        return [part for part in self._new if part is not None]

    def pad(self, x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
        """What came before in place of the zeros."""
        for index, slot in self._slots.get(self.number, ()):
            old, length = self._parts[index].flatten(0, 1), slot.shape[slot.time]
            joined = torch.cat([slot.cut.narrow(old, slot.channel, self._uf), x], slot.time)
            latest = torch.cat([old, self._all_channels(slot, x)], slot.time) if self._narrows(slot) else joined
            latest = latest.narrow(slot.time, latest.shape[slot.time] - length, length)
            self._new[index] = latest.unflatten(0, (-1, slot.shape[0])).clone()
            x, pad = joined, [*pad]
            pad[2 * (x.ndim - 1 - slot.time)] = 0
        return F.pad(x, pad, mode, value) if any(pad) else x

    def recur(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The state after the last chunk in place of the first one."""
        slots = self._slots.get(self.number)
        if not slots:
            return func(*args, **kwargs)
        whole = [self._parts[index].flatten(0, 1) for index, _ in slots]
        old = [
            slot.cut.narrow(part, slot.channel, self._uf).transpose(0, 1).contiguous()
            for part, (_, slot) in zip(whole, slots, strict=True)
        ]
        out, *new = func(args[0], old[0] if func is torch.gru else old, *args[2:], **kwargs)
        for (index, slot), before, after in zip(slots, whole, new, strict=True):
            # A unit outside of the width keeps its state.
            part = after.transpose(0, 1)
            part = self._all_channels(slot, part, before) if self._narrows(slot) else part
            self._new[index] = part.unflatten(0, (-1, slot.shape[0])).clone()
        return out, *new

    def _narrows(self, slot: Slot) -> bool:
        return slot.cut.is_cut and self._uf < 1

    def _all_channels(self, slot: Slot, part: Tensor, others: Tensor | None = None) -> Tensor:
        """The active channels among others, which are zero by default."""
        if others is None:
            shape = [*part.shape]
            shape[slot.channel] = slot.shape[slot.channel]
            others = part.new_zeros(shape)
        active = slot.cut.mask(torch.tensor(self._uf, device=part.device)).nonzero()[:, 0]
        return others.index_copy(slot.channel, active, part)


def find_slots(network: nn.Module, example: Tensor, ufs: Iterable[float]) -> list[Slot]:
    """What a slimmed network remembers along time.

    Args:
        network: in eval mode.
        example: ``[1, 1, T]``; twice as long a signal is run too, which tells what lies along time.
        ufs: all that it runs at.

    Raises:
        ValueError: for a bidirectional layer along time, or channels that are remembered and cut, but that no slimmable
            layer reads.
    """
    watch = _watched(network, example, 1.0)
    longer = _watched(network, torch.cat([example, example], 2), 1.0)
    narrow = [(uf, _watched(network, example, uf)) for uf in ufs if uf < 1]
    if any(len(other.calls) != len(watch.calls) for other in (longer, *(other for _, other in narrow))):
        raise ValueError("the network pads more often in a longer signal: expected as many calls at every length")
    slots: list[Slot] = []
    for number, (call, other) in enumerate(zip(watch.calls, longer.calls, strict=True)):
        find = _padded if call.func is F.pad else _recurrent
        slots += find(number, call, other, watch.readers.get(number), [(uf, w.calls[number]) for uf, w in narrow])
    return slots


def _watched(network: nn.Module, example: Tensor, uf: float) -> _Watch:
    watch = _Watch()
    layers = [layer for layer in network.modules() if isinstance(layer, SlimLayer)]
    handles = [layer.register_forward_pre_hook(watch.read) for layer in layers]
    try:
        with at(uf), watch:
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return watch


Narrow = list[tuple[float, _Call]]
"""What a call was at each narrow UF."""


def _padded(number: int, call: _Call, longer: _Call, reader: SlimLayer | None, narrow: Narrow) -> list[Slot]:
    """A padding is memory where zeros precede the axis that a longer signal makes longer."""
    ndim = len(call.shape)
    grown = [axis for axis in range(ndim) if call.shape[axis] != longer.shape[axis]]
    pairs = {ndim - 1 - place: call.pad[2 * place : 2 * place + 2] for place in range(len(call.pad) // 2)}
    if len(grown) != 1 or not grown[0] or pairs.get(grown[0], (0, 0))[0] <= 0 or pairs[grown[0]][1] != 0:
        return []
    (time,) = grown
    shape = list(call.shape)
    shape[time] = pairs[time][0]
    changed = sorted({axis for _, other in narrow for axis in range(ndim) if other.shape[axis] != call.shape[axis]})
    channel, cut = 1, Axis.of(call.shape[1], cut=False)
    if changed:
        channel = changed[0]
        cut = cut if reader is None else reader.inputs
        fits = cut.size == call.shape[channel] and all(cut.count(uf) == seen.shape[channel] for uf, seen in narrow)
        if len(changed) > 1 or not fits:
            raise ValueError(
                f"padding number {number + 1} of the network remembers channels {call.shape} that are cut: expected "
                "a slimmable layer that reads them next"
            )
    return [Slot(number, tuple(shape), channel, cut, time)]


def _recurrent(number: int, call: _Call, longer: _Call, reader: SlimLayer | None, narrow: Narrow) -> list[Slot]:
    """A recurrent layer remembers unless a longer signal has more rows: then it runs along another axis."""
    if not call.pad:
        raise ValueError(f"recurrent layer number {number + 1} of the network runs on a packed sequence: expected none")
    if call.state != longer.state:
        return []
    if call.pad[0]:
        raise ValueError("a bidirectional layer runs along time: expected one direction, as a stream has no future")
    slots = []
    for layers, rows, units in call.state:
        is_cut = any(other.state[0][2] != units for _, other in narrow)
        slots.append(Slot(number, (rows, layers, units), 2, Axis.of(units, cut=is_cut), 0))
    return slots
