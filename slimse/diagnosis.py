"""What SlimSE can run on here: versions, processor, runtimes, backends; whether compiled path and kernels are ready."""

from __future__ import annotations

import os
import platform
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from . import __version__
from .checkpoint import load
from .ops import verdicts
from .runtimes.numba import numba_missing
from .streaming import Streamer

_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512fp16", "amx-bf16", "neon", "sve")


def forget_verdicts() -> None:
    """Let GPU kernels be checked again."""
    if torch.cuda.is_available():
        verdicts.forget(torch.device("cuda", torch.cuda.current_device()))


def examine() -> dict[str, dict[str, Any]]:
    """What `slimse doctor` prints: versions, processor, runtimes and backends."""
    return {
        "version": {"slimse": __version__, "python": platform.python_version(), **_versions()},
        "processor": {"cores": os.cpu_count(), "threads of torch": torch.get_num_threads(), **_processor()},
        "runtime": {"eager": "available", "numba": numba_missing() or "available"},
        "backend": {"reference": "available", "cuda": _cuda(), "triton": _triton()},
        "compiled path": {"state": numba_missing() or _compile()},
        "kernels": _kernels(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "numpy", "numba", "llvmlite", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> dict[str, Any]:
    if numba_missing():
        return {"name": platform.processor() or platform.machine()}
    from llvmlite import binding

    has = binding.get_host_cpu_features()
    return {"name": binding.get_host_cpu_name(), "features": ", ".join(name for name in _FEATURES if has.get(name))}


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "no GPU, or a build of torch without CUDA"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _triton() -> str:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"cannot be imported ({error})"
    return "available" if torch.cuda.is_available() else "installed, but it needs a GPU"


def _kernels() -> dict[str, str]:
    """Use the bundled model's kernels at every width, so that they are checked; what each op's verdicts are."""
    if not torch.cuda.is_available() or _triton() != "available":
        return {"state": "not checked: " + ("Triton " + _triton() if torch.cuda.is_available() else "no GPU")}
    device = torch.device("cuda", torch.cuda.current_device())
    model = load(device=str(device))
    noise, ufs = 0.05 * torch.randn(2, 1, model.sample_rate // 2, device=device), model.ufs
    mixed = torch.tensor(ufs, device=device)[
        torch.randint(len(ufs), (2, model.geometry.frames(noise.shape[2])), device=device)
    ]
    with torch.inference_mode(), warnings.catch_warnings():
        # What they say is in the verdicts.
        warnings.simplefilter("ignore")
        for uf in (*ufs, mixed):
            model(noise, uf)
    return verdicts.summary(device)


def _compile() -> str:
    """Run one frame on the compiled path; say how long the first call took and where its code came from."""
    model = load()
    start = time.perf_counter()
    Streamer(model, runtime="numba").feed(np.zeros(model.geometry.first, np.float32))
    seconds = time.perf_counter() - start
    from .runtimes.numba.jit import origin

    if origin() == "cache":
        return f"ready: loaded in {seconds:.1f} s from numba's cache"
    kept = "kept in numba's cache" if origin() == "compiler" else "not kept, as numba's cache cannot be used"
    return f"ready: compiled in {seconds:.1f} s, {kept}"
