"""The network on the CPU as one compiled call per chunk, with no Python and no memory allocation between the layers.

Compiled by numba: it installs without a compiler, compiles for the CPU it finds (once, then from a cache on disk), and
gives up Python's lock while it runs. PyTorch's own compiler would need a C++ compiler on the user's machine, and
ONNX Runtime one copy of the weights for every width. Nothing here is imported before it is asked for.
"""

from __future__ import annotations

from functools import cache


@cache
def numba_missing() -> str | None:
    """Why numba cannot be used, or None if it can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba cannot be imported ({error}): pip install numba"
    return None
