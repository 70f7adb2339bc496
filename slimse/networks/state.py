"""What streams remember between two steps, whatever the network: nested tuples, lists and dicts of tensors.

Every tensor has the streams on axis 0. What is no tensor belongs to all streams alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def tree_map(change: Callable[..., Any], tree: State, *others: State) -> State:
    """Apply ``change`` to every tensor of ``tree`` and those in its place in ``others``; keep all else of ``tree``."""
    result: Any = tree
    if isinstance(tree, Tensor):
        result = change(tree, *others)
    elif isinstance(tree, tuple | list):
        rest: Any = others
        parts = [tree_map(change, *group) for group in zip(tree, *rest, strict=True)]
        result = type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    elif isinstance(tree, dict):
        tables: Any = others
        result = {key: tree_map(change, tree[key], *(table[key] for table in tables)) for key in tree}
    return result  # type: ignore[no-any-return]


def leaves(state: Any) -> list[Tensor]:
    """All tensors of a state, in a row."""
    return [part for _, part, _ in named_parts(state, state)]


def select(state: State, index: int) -> State:
    """One of the streams, as views."""
    return tree_map(lambda part: part[index : index + 1], state)


def stack(states: Sequence[State]) -> State:
    """Streams that have seen as many samples side by side."""
    return tree_map(lambda *parts: torch.cat(parts), *states)


def put(state: State, streams: Tensor, others: State, rows: Tensor) -> None:
    """Overwrite ``streams`` with ``rows`` of another state, in place. Both states have given their first output."""
    tree_map(lambda mine, theirs: mine.index_copy_(0, streams, theirs.index_select(0, rows)), state, others)


def copy(state: State, other: State) -> None:
    """Overwrite all tensors, in place, with those of a state of the same shapes; all else stays."""
    tree_map(lambda mine, theirs: mine.copy_(theirs), state, other)


def named_parts(state: Any, like: Any, name: str = "state") -> Iterator[tuple[str, Any, Tensor]]:
    """Every tensor of ``like`` with its name and what ``state`` has in its place.

    Raises:
        ValueError: where ``state`` is nested in another way; the message names the part.
    """
    if isinstance(like, Tensor):
        yield name, state, like
    elif isinstance(like, tuple | list):
        if type(state) is not type(like) or len(state) != len(like):
            raise ValueError(
                f"{name} is a {type(state).__name__}: expected a {type(like).__name__} of {len(like)} parts"
            )
        for index, (mine, theirs) in enumerate(zip(state, like, strict=True)):
            fields = getattr(like, "_fields", None)
            yield from named_parts(mine, theirs, f"{name}.{fields[index]}" if fields else f"{name}[{index}]")
    elif isinstance(like, dict):
        if not isinstance(state, dict) or state.keys() != like.keys():
            raise ValueError(f"{name} is a {type(state).__name__}: expected a dict of {sorted(like)}")
        for key in like:
            yield from named_parts(state[key], like[key], f"{name}[{key!r}]")


def check_part(name: str, part: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Make sure that a part of a state, which may be damaged, is a sound tensor.

    Raises:
        ValueError: for another type, shape or dtype, or a value that is not finite.
    """
    if not isinstance(part, Tensor) or part.layout != torch.strided:
        raise ValueError(f"{name} is a {type(part).__name__}: expected a tensor {shape}")
    if tuple(part.shape) != shape or part.dtype != dtype:
        raise ValueError(f"{name} has shape {tuple(part.shape)} and dtype {part.dtype}: expected {shape}, {dtype}")
    if not bool(part.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite")
