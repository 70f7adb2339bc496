"""Kernels run on a GPU where there is one, else in Triton's interpreter, chosen before they are imported."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device() -> str:
    """Where kernels can run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _bfloat16_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as the integers of its bits: widen them for products, and round, not cut, sums."""
    if torch.cuda.is_available():
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widen(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: object) -> TensorHandle:
        return original(self, widen(a), widen(b), *rest)

    def cast_impl(self: InterpreterBuilder, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, src, dst_type)
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16().view(torch.int16)
        return TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)


@pytest.fixture(autouse=True)
def _language_patched_once_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter does so anew for every function that a kernel calls, which takes it a third of its time."""
    if torch.cuda.is_available():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    original, patched = interpreter._patch_lang, set()

    @functools.cache
    def languages(fn: Callable[..., object]) -> set[str]:
        return {module.__name__ for module in (tl, tl.core) if any(module is it for it in fn.__globals__.values())}

    def patch_lang(fn: Callable[..., object]) -> object:
        if languages(fn) <= patched:
            return interpreter._LangPatchScope()
        scope = original(fn)
        if not patched:
            # Of the kernel itself, the only one that is restored.
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        patched.update(languages(fn))
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", patch_lang)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, ...]]:
    """Counts the matrix products that every program (by its place in the grid) does from now on."""
    if torch.cuda.is_available():
        pytest.skip("only the interpreter can count products")
    from triton.runtime.interpreter import InterpreterBuilder

    counts: Counter[tuple[int, ...]] = Counter()
    original = InterpreterBuilder.create_dot

    def create_dot(self: InterpreterBuilder, *args: object) -> object:
        counts[tuple(self.grid_idx)] += 1
        return original(self, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    return counts


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Every `torch.empty` is full of NaN, so that what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def distance() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Norm of a difference over the norm of what is expected, or over 1 where that is zero; NaN stays NaN."""

    def measure(actual: torch.Tensor, expected: torch.Tensor) -> float:
        assert actual.shape == expected.shape
        scale = float(expected.double().norm()) or 1.0
        return float((actual.double() - expected.double()).norm()) / scale

    return measure
