"""The UF of a block of code: how layers get to know it in networks whose code knows of none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..width import UF, check_uf

_uf: ContextVar[UF | None] = ContextVar("uf", default=None)


def uf_around() -> UF | None:
    """The UF of the innermost block of `at` around the caller, None outside of any."""
    return _uf.get()


def current_uf() -> UF:
    """The UF of the innermost block of `at` around the caller; 1 outside of any."""
    uf = _uf.get()
    return 1.0 if uf is None else uf


@contextmanager
def at(uf: UF) -> Iterator[None]:
    """Run the slimmed networks that are called in this context at ``uf``.

    It holds for this thread (and asynchronous task) alone, and ends with the block. Layers that an activation
    checkpoint inside of the block runs again in the backward pass cannot know it, and refuse: put the checkpoint
    around the block.

    Args:
        uf: a number in (0, 1], or one per batch item, ``[B]``.

    Raises:
        ValueError: for another number or shape.

    >>> import slimse
    >>> layers = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> network = slimse.slimmify(layers, torch.randn(3, 8))
    >>> with at(0.25):
    ...     network(torch.randn(3, 8)).shape
    torch.Size([3, 8])
    """
    check_uf(uf)
    token = _uf.set(uf)
    try:
        yield
    finally:
        _uf.reset(token)
