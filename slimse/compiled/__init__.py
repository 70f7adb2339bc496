"""The network on the CPU as one compiled call per chunk, with no Python and no memory allocation between the layers.

Compiled by numba: it installs without a compiler, compiles for the CPU it finds (once, then from a cache on disk), and
gives up Python's lock while it runs. PyTorch's own compiler would need a C++ compiler on the user's machine, and
ONNX Runtime one copy of the weights for every width. Nothing here is imported before it is asked for.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..models import SlimDemucs

STEP_FRAMES = 256
"""Most frames of one step of a stream: bounds the memory that a long chunk takes."""
BACKENDS = ("auto", "torch", "triton", "numba")


@cache
def numba_missing() -> str | None:
    """Why numba cannot be used, or None if it can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba cannot be imported ({error}): pip install numba"
    return None


def unavailable(model: SlimDemucs) -> str | None:
    """Why the compiled path cannot run this model, or None if it can."""
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        return f"the model is on {parameter.device}, the compiled path runs on the CPU"
    if parameter.dtype != torch.float32:
        return f"the model is in {parameter.dtype}, the compiled path needs float32"
    if not model.config.causal:
        return "the model is bidirectional, the compiled path is for causal ones"
    return numba_missing()


def use_compiled(backend: str, model: SlimDemucs) -> bool:
    """Whether a request for ``backend`` means the compiled path.

    Raises:
        ValueError: for another name, for ``"numba"`` where it cannot run, or for ``"triton"`` where the model's layers
            would run something else.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: expected one of {BACKENDS}")
    if backend == "triton" and model.backend != "triton":
        device = next(model.parameters()).device
        if model.backend != "auto" or device.type != "cuda":
            raise ValueError(
                f"backend = 'triton' cannot run here: the model's own backend is {model.backend!r}, on {device}; "
                "expected a model made or loaded with backend = 'triton'"
            )
    if backend in ("torch", "triton"):
        return False
    reason = unavailable(model)
    if backend == "numba" and reason is not None:
        raise ValueError(f"backend = 'numba' cannot run here: {reason}")
    return reason is None
