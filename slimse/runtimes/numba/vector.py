"""Vector instructions for numba: the tile of a matrix product, and the element-wise steps between products.

numba vectorises loops over scalars to half the width of a server's registers, keeps no block of results in them, and
has no vector exponential. So the innermost steps are built here from LLVM's vector types. They fit every CPU: with
AVX-512 one vector is one register, elsewhere LLVM splits it. None of them checks bounds.

Arrays are one-dimensional and contiguous, float32; weights may be float16, passed as ``uint16``, and are widened in
registers. They may also be int8, with a scale per column. ``*_at`` are offsets in elements.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Numbers in a vector; channels and the columns of weights are padded to a multiple of it."""
_FEATURES = binding.get_host_cpu_features()
WIDE = 4 if _FEATURES.get("avx512f") else 1
"""Vectors side by side in a tile of several rows: more would not stay in registers."""
WIDENS = bool(_FEATURES.get("f16c", platform.machine().lower() in ("arm64", "aarch64")))
"""Whether the CPU turns float16 into float32 as fast as it loads it."""

NONE = np.float32(-np.inf)
"""A floor that changes nothing."""

_FLOAT, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _INTS, _HALVES, _BYTES = (ir.VectorType(kind, LANES) for kind in (_FLOAT, _I32, ir.HalfType(), ir.IntType(8)))
_EXP = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
"""Taylor coefficients: within half of ln 2 the next term is below 1e-7."""
_SHIFTER = 1.5 * 2**23
"""Added to a float32, it leaves the nearest integer in the lowest bits."""


class _Code:
    """Writes vector instructions at one place of a function."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> None:
        self.builder = builder
        self._context = context
        self.types = signature.args
        self.values = [self.unwrap(kind, value) for kind, value in zip(signature.args, args, strict=True)]

    def unwrap(self, kind: Any, value: Any) -> Any:
        """The pointer of an array; anything else as it is."""
        return (
            self._context.make_array(kind)(self._context, self.builder, value).data
            if isinstance(kind, types.Array)
            else value
        )

    def load(self, pointer: Any, at: Any, kind: Any = _VECTOR) -> Any:
        element = self.builder.gep(pointer, [at])
        return self.builder.load(self.builder.bitcast(element, kind.as_pointer()), align=4)

    def load_weights(self, pointer: Any, at: Any, kind: Any) -> Any:
        build = self.builder
        if kind == types.float32:
            return self.load(pointer, at)
        if kind == types.int8:
            element = build.bitcast(build.gep(pointer, [at]), _BYTES.as_pointer())
            return build.sitofp(build.sext(build.load(element, align=1), _INTS), _VECTOR)
        element = build.bitcast(build.gep(pointer, [at]), _HALVES.as_pointer())
        return build.fpext(build.load(element, align=2), _VECTOR)

    def store(self, value: Any, pointer: Any, at: Any) -> None:
        element = self.builder.bitcast(self.builder.gep(pointer, [at]), _VECTOR.as_pointer())
        self.builder.store(value, element, align=4)

    def constant(self, value: float) -> Any:
        return ir.Constant(_VECTOR, [value] * LANES)

    def spread(self, scalar: Any, kind: Any = _VECTOR) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, _I32(0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(_INTS, [0] * LANES))

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        return self.builder.call(function, [x, y, z])

    def at_least(self, x: Any, floor: Any) -> Any:
        """The larger one; NaN stays NaN."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, floor), floor, x)

    def exp(self, x: Any) -> Any:
        """Relative error below 3e-7; NaN stays NaN."""
        builder = self.builder
        high = self.constant(88.0)
        x = builder.select(builder.fcmp_ordered(">", x, high), high, self.at_least(x, self.constant(-87.0)))
        shifted = self.multiply_add(x, self.constant(1 / math.log(2)), self.constant(_SHIFTER))
        whole = builder.fsub(shifted, self.constant(_SHIFTER))
        # ln 2 in two parts, so that the remainder is exact.
        rest = self.multiply_add(whole, self.constant(-0.693359375), x)
        rest = self.multiply_add(whole, self.constant(0.693359375 - math.log(2)), rest)
        power = self.constant(_EXP[0])
        for coefficient in _EXP[1:]:
            power = self.multiply_add(power, rest, self.constant(coefficient))
        exponent = builder.add(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [127] * LANES))
        scale = builder.bitcast(builder.shl(exponent, ir.Constant(_INTS, [23] * LANES)), _VECTOR)
        return builder.fmul(power, scale)

    def sigmoid(self, x: Any) -> Any:
        one = self.constant(1.0)
        return self.builder.fdiv(one, self.builder.fadd(one, self.exp(self.builder.fsub(self.constant(-0.0), x))))

    def tanh(self, x: Any) -> Any:
        two = self.builder.fadd(x, x)
        return self.multiply_add(self.constant(2.0), self.sigmoid(two), self.constant(-1.0))


def _void(emit: Callable[..., None], *kinds: Any) -> tuple[Any, Callable[..., Any]]:
    """What an intrinsic without a result returns: ``emit(code, *arguments)``, where arrays arrive as pointers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(context, builder, signature, args)
        emit(code, *code.values)
        return context.get_dummy_value()

    return types.void(*kinds), generate


def make_tile(rows: int, vectors: int) -> Callable[..., None]:
    """Build the product of ``rows`` rows of activations with ``vectors`` vectors of columns of a weight.

    The result is ``tile(row, column, job)`` with ``job = (x, x_at, x_step, w, w_at, w_step, w_next, scale, scale_at,
    out, out_at, out_step, init, init_at, init_step, count, floor)``. For its rows ``p`` (from ``row``) and vectors
    ``v`` (from ``column``) it computes ``out[p, v] = max(floor, init[p, v] + sum over j < count of x[p, j] *
    w[j, v])``; if ``w`` is int8, the sum is multiplied with ``scale[v]``, which others do not read. Row ``p`` is
    ``p * *_step`` elements from the start, and so is row ``j`` of ``w``, whose vector ``v`` is another ``v * w_next``
    away. ``init_step = 0`` gives all rows the same ``init``.
    """
    places = [(row, vector) for row in range(rows) for vector in range(vectors)]

    def emit(code: _Code, row: Any, column: Any, job: Any) -> None:
        kinds = code.types[2].types
        parts = [
            code.unwrap(kind, part) for kind, part in zip(kinds, cgutils.unpack_tuple(code.builder, job), strict=True)
        ]
        x, x_at, x_step, w, w_at, w_step, w_next, scale, scale_at, *parts = parts
        out, out_at, out_step, init, init_at, init_step, count, floor = parts
        kind = kinds[3].dtype
        build = code.builder
        start = build.mul(column, _I64(LANES))

        def place(at: Any, step: Any, p: int, vector: int) -> Any:
            behind = build.mul(step, build.add(row, _I64(p)))
            return build.add(build.add(at, behind), build.add(start, _I64(vector * LANES)))

        sums = {key: cgutils.alloca_once(build, _VECTOR) for key in places}
        for key in places:
            begin = code.load(init, place(init_at, init_step, *key)) if kind != types.int8 else code.constant(0.0)
            build.store(begin, sums[key])
        x_rows = [build.add(x_at, build.mul(x_step, build.add(row, _I64(p)))) for p in range(rows)]
        w_columns = [build.add(w_at, build.mul(w_next, build.add(column, _I64(v)))) for v in range(vectors)]
        with cgutils.for_range(build, count) as loop:
            behind = build.mul(loop.index, w_step)
            weights = [code.load_weights(w, build.add(column_at, behind), kind) for column_at in w_columns]
            for p in range(rows):
                factor = code.spread(code.load(x, build.add(x_rows[p], loop.index), _FLOAT))
                for vector in range(vectors):
                    total = code.multiply_add(factor, weights[vector], build.load(sums[p, vector]))
                    build.store(total, sums[p, vector])
        least = code.spread(floor)
        for key in places:
            total = build.load(sums[key])
            if kind == types.int8:
                factor = code.load(scale, place(scale_at, _I64(0), *key))
                total = code.multiply_add(total, factor, code.load(init, place(init_at, init_step, *key)))
            code.store(code.at_least(total, least), out, place(out_at, out_step, *key))

    def tile(context, row, column, job):  # type: ignore[no-untyped-def]
        return _void(emit, row, column, job)

    return intrinsic(tile)


@intrinsic
def glu(context, x, x_at, out, out_at):  # type: ignore[no-untyped-def]
    """``out[:LANES] = value * sigmoid(gate)``, with a vector of values at ``x_at`` and its gates behind it."""

    def emit(code: _Code, x: Any, x_at: Any, out: Any, out_at: Any) -> None:
        gate = code.sigmoid(code.load(x, code.builder.add(x_at, _I64(LANES))))
        code.store(code.builder.fmul(code.load(x, x_at), gate), out, out_at)

    return _void(emit, x, x_at, out, out_at)


@intrinsic
def glu_narrow(context, x, x_at, out, out_at):  # type: ignore[no-untyped-def]
    """As `glu`, of a vector whose first half are values and whose second half are gates; so half the result counts."""

    def emit(code: _Code, x: Any, x_at: Any, out: Any, out_at: Any) -> None:
        both = code.load(x, x_at)
        upper = ir.Constant(_INTS, 2 * [*range(LANES // 2, LANES)])
        gate = code.sigmoid(code.builder.shuffle_vector(both, both, upper))
        code.store(code.builder.fmul(both, gate), out, out_at)

    return _void(emit, x, x_at, out, out_at)


@intrinsic
def add(context, x, x_at, y, y_at, floor, out, out_at):  # type: ignore[no-untyped-def]
    """``out[:LANES] = max(floor, x + y)``."""

    def emit(code: _Code, x: Any, x_at: Any, y: Any, y_at: Any, floor: Any, out: Any, out_at: Any) -> None:
        total = code.builder.fadd(code.load(x, x_at), code.load(y, y_at))
        code.store(code.at_least(total, code.spread(floor)), out, out_at)

    return _void(emit, x, x_at, y, y_at, floor, out, out_at)


@intrinsic
def move(context, x, x_at, out, out_at, count):  # type: ignore[no-untyped-def]
    """``out[:count] = x[:count]``, which may overlap. numba's own loops within one array go number by number."""

    def emit(code: _Code, x: Any, x_at: Any, out: Any, out_at: Any, count: Any) -> None:
        build = code.builder
        source, to = build.gep(x, [x_at]), build.gep(out, [out_at])
        cgutils.raw_memmove(build, to, source, count, _I64(4))

    return _void(emit, x, x_at, out, out_at, count)


@intrinsic
def gru_cell(context, now, now_at, past, past_at, step, state, state_at, out, out_at):  # type: ignore[no-untyped-def]
    """One step of LANES units, gates reset, update and new ``step`` apart, into both ``state`` and ``out``."""

    def emit(code: _Code, now: Any, now_at: Any, past: Any, past_at: Any, step: Any, *rest: Any) -> None:
        state, state_at, out, out_at = rest
        build = code.builder
        x = [code.load(now, build.add(now_at, build.mul(step, _I64(gate)))) for gate in range(3)]
        h = [code.load(past, build.add(past_at, build.mul(step, _I64(gate)))) for gate in range(3)]
        reset, update = (code.sigmoid(build.fadd(x[gate], h[gate])) for gate in range(2))
        new = code.tanh(code.multiply_add(reset, h[2], x[2]))
        new = code.multiply_add(update, build.fsub(code.load(state, state_at), new), new)
        code.store(new, state, state_at)
        code.store(new, out, out_at)

    return _void(emit, now, now_at, past, past_at, step, state, state_at, out, out_at)


@intrinsic
def lstm_cell(context, gates, gates_at, state, h_at, c_at, active, out, out_at):  # type: ignore[no-untyped-def]
    """One step of LANES units, the first ``active`` of them; the others keep ``h`` and ``c`` and put out zero."""

    def emit(code: _Code, gates: Any, gates_at: Any, state: Any, h_at: Any, c_at: Any, *rest: Any) -> None:
        active, out, out_at = rest
        build = code.builder
        inputs, forget, cell, output = (code.load(gates, build.add(gates_at, _I64(gate * LANES))) for gate in range(4))
        h, c = code.load(state, h_at), code.load(state, c_at)
        new_c = build.fmul(code.sigmoid(inputs), code.tanh(cell))
        new_c = code.multiply_add(code.sigmoid(forget), c, new_c)
        new_h = build.fmul(code.sigmoid(output), code.tanh(new_c))
        limit = code.spread(build.trunc(active, _I32), _INTS)
        runs = build.icmp_signed("<", ir.Constant(_INTS, list(range(LANES))), limit)
        code.store(build.select(runs, new_h, h), state, h_at)
        code.store(build.select(runs, new_c, c), state, c_at)
        code.store(build.select(runs, new_h, code.constant(0.0)), out, out_at)

    return _void(emit, gates, gates_at, state, h_at, c_at, active, out, out_at)


# Memory, calls and the state of the processor -----------------------------------------------------------------------


@intrinsic
def pointer(context, address):  # type: ignore[no-untyped-def]
    """An address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def weights_at(context, address, kind):  # type: ignore[no-untyped-def]
    """An address as a pointer to numbers of ``kind``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), generate


@intrinsic
def call_product(  # type: ignore[no-untyped-def]
    context, function, x, x_at, x_step, rows, inputs, weights, step, following, group, scale, scale_at,
    bias, bias_at, vectors, out, out_at, out_step, limits,
):  # fmt: skip
    """Call what `slimse.runtimes.numba.products.product_address` gave, with arrays and offsets for its pointers."""

    def emit(code: _Code, function: Any, *values: Any) -> None:
        x, x_at, x_step, rows, inputs, weights, step, following, group, scale, scale_at, *rest = values
        bias, bias_at, vectors, out, out_at, out_step, limits = rest
        build = code.builder
        arguments = [
            *(build.gep(x, [x_at]), x_step, rows, inputs, weights, step, following, group),
            *(build.gep(scale, [scale_at]), build.gep(bias, [bias_at]), vectors),
            *(build.gep(out, [out_at]), out_step, limits),
        ]
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        build.call(build.inttoptr(function, kind.as_pointer()), arguments)

    return _void(
        emit, function, x, x_at, x_step, rows, inputs, weights, step, following, group, scale, scale_at,
        bias, bias_at, vectors, out, out_at, out_step, limits,
    )  # fmt: skip


FLUSH = 0x8040 if platform.machine().lower() in ("x86_64", "amd64") else 0
"""Bits of the control register that make numbers too small for a full mantissa zero, as arguments and as results."""


def _control(builder: Any, name: str, slot: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), name)
    builder.call(function, [builder.bitcast(slot, byte)])


@intrinsic
def rounding(context):  # type: ignore[no-untyped-def]
    """The control register of floating point of this thread; 0 where it is not known."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slot = cgutils.alloca_once_value(builder, _I32(0))
        if FLUSH:
            _control(builder, "llvm.x86.sse.stmxcsr", slot)
        return builder.load(slot)

    return types.uint32(), generate


@intrinsic
def set_rounding(context, register):  # type: ignore[no-untyped-def]
    """Set what `rounding` gives."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if FLUSH:
            _control(builder, "llvm.x86.sse.ldmxcsr", cgutils.alloca_once_value(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.uint32), generate
