"""Compile for the CPU that is there, and keep the machine code on disk.

Functions that only compiled code calls are made by `jit`. What Python calls goes through `compiled`: one C function
without Python objects, called through ctypes, which gives up Python's lock meanwhile.
"""

from __future__ import annotations

import ctypes
import hashlib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import cfunc, njit, types

from ... import router
from ...nn import level, resample
from .. import base

jit = njit(no_cpython_wrapper=True, error_model="numpy")  # type: ignore[call-overload]
"""Compile into its callers; division by zero gives infinity, as in C."""

_KINDS = {types.int64: ctypes.c_int64, types.float32: ctypes.c_float}
_said: set[str] = set()
_made: dict[str, bool] = {}


@cache
def sources() -> str:
    """Digest of the sources that compiled code comes from.

    numba looks at the file of a function alone, and not at what it calls. A function that names this digest is
    compiled again when any of the sources has changed.
    """
    digest = hashlib.sha256()
    outside = [Path(str(module.__file__)) for module in (router, level, resample, base)]
    for path in [*sorted(Path(__file__).parent.glob("*.py")), *outside]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compiled(function: Callable[..., Any], result: Any, *arguments: Any) -> tuple[Callable[..., Any], int]:
    """A C function and its address. It stays in memory for as long as the process.

    Args:
        function: what to compile. It must name `sources` in its closure.
        result: numba type of what it returns.
        *arguments: numba types; arrays are pointers, passed as integers.
    """
    signature = result(*arguments)
    try:
        made = cfunc(signature, cache=True, error_model="numpy")(function)
        _made[function.__qualname__] = bool(made.cache_hits)
    except Exception as error:
        # A damaged file, a full disk, or no folder to write to. An error in the function itself comes again below.
        made = cfunc(signature, error_model="numpy")(function)
        _say(f"the cache of compiled code cannot be used ({type(error).__name__}: {error})")
    _alive.append(made)
    kinds: Any = [_KINDS.get(kind, ctypes.c_void_p) for kind in arguments]
    given: Any = _KINDS.get(result)
    address = made.address
    assert address is not None
    return ctypes.CFUNCTYPE(given, *kinds)(address), address


_alive: list[Any] = []


def origin() -> str:
    """Where the compiled code of this process came from: ``"cache"``, ``"compiler"``, or ``"no cache"`` to keep it."""
    if _said:
        return "no cache"
    return "cache" if all(_made.values()) else "compiler"


def _say(problem: str) -> None:
    """Warn once in a process."""
    if not _said:
        _said.add(problem)
        warnings.warn(
            f"{problem}; slimse compiles at every start, which takes seconds. Delete the files *.nbi and *.nbc in the "
            "folder __pycache__ of slimse/runtimes/numba, or in NUMBA_CACHE_DIR, or set NUMBA_CACHE_DIR to a folder "
            "that can be written to",
            RuntimeWarning,
            stacklevel=3,
        )
