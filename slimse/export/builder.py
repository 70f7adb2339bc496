"""Writing ONNX graphs node by node, with weights and constants stored once for all subgraphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 18
"""Of the graphs: the oldest that says how `Split` divides unevenly; `onnxruntime-web` runs it."""
IR_VERSION = 9
PRECISIONS = ("float32", "float16", "int8")
"""Of stored weights. In float16 they are rounded; the graph computes in float32. In int8, inputs of the large products
are quantised too, call by call."""


class Store:
    """Initializers of the main graph, which its subgraphs read too.

    Args:
        precision: of weights, one of `PRECISIONS`.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.tensors: dict[str, TensorProto] = {}
        self.casts: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names: dict[str, int] = {}

    def unique(self, stem: str) -> str:
        """A name that no other value of the model has."""
        count = self._names[stem] = self._names.get(stem, 0) + 1
        return stem if count == 1 else f"{stem}_{count}"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """The name of an array; the same array has the same name."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self.unique("const")
            self.tensors[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def weight(self, name: str, value: NDArray[Any], *, exact: bool = False) -> str:
        """The name under which a trained weight can be read; ``exact`` keeps it out of float16.

        The graph reads in float32 what is stored in float16.
        """
        if exact or self.precision == "float32":
            if name not in self.tensors:
                self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
            return name
        stored = f"{name}_half"
        if stored not in self.tensors:
            self.tensors[stored] = numpy_helper.from_array(np.ascontiguousarray(value, np.float16), stored)
            self.casts.append(helper.make_node("Cast", [stored], [name], name=name, to=TensorProto.FLOAT))
        return name


class Scope:
    """Nodes of one graph or subgraph. Values are names; those of enclosing graphs can be read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.nodes: list[NodeProto] = []

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; gives the name of its output, or a tuple of names for several."""
        names = [self.store.unique(attributes.pop("name", kind.lower())) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """As of `Store`."""
        return self.store.constant(value, dtype)

    def ints(self, *values: int) -> str:
        """A constant ``[n]`` of int64: shapes, axes, positions."""
        return self.store.constant(values, np.int64)

    def reshape(self, x: str, *shape: int) -> str:
        """``x`` in another shape."""
        return str(self.op("Reshape", x, self.ints(*shape)))

    def slice(self, x: str, start: int, end: int, axis: int = 0) -> str:
        """``x[start:end]`` along an axis."""
        return str(self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis)))

    def split(self, x: str, *sizes: int, axis: int = 0) -> tuple[str, ...]:
        """Parts of ``x`` along an axis."""
        if len(sizes) == 1:
            return (x,)
        return tuple(self.op("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis))

    def concat(self, *parts: str, axis: int = 0) -> str:
        """Parts, one after the other along an axis."""
        return parts[0] if len(parts) == 1 else str(self.op("Concat", *parts, axis=axis))

    def glu(self, x: str, channels: int) -> str:
        """Value times sigmoid of gate, of ``[P, 2 * channels]``."""
        value, gate = self.split(x, channels, channels, axis=1)
        return str(self.op("Mul", value, self.op("Sigmoid", gate)))

    def graph(self, name: str, build: Callable[[Scope], Sequence[str]], inputs: Sequence[Any] = ()) -> GraphProto:
        """A subgraph of float32 outputs."""
        inner = Scope(self.store)
        results = list(build(inner))
        made = {output for node in inner.nodes for output in node.output}
        # What only passes through needs a name of the subgraph's own.
        outputs = [result if result in made else inner.op("Identity", result) for result in results]
        return helper.make_graph(inner.nodes, name, list(inputs), [_value(output) for output in outputs])

    def choose(
        self, condition: str, yes: Callable[[Scope], Sequence[str]], no: Callable[[Scope], Sequence[str]]
    ) -> Any:
        """Run one of two subgraphs; gives the names of the outputs, as many as each has."""
        branches = {"then_branch": self.graph("then", yes), "else_branch": self.graph("else", no)}
        return self.op("If", condition, outputs=len(branches["then_branch"].output), **branches)

    def loop(
        self,
        count: str,
        carried: Sequence[str],
        body: Callable[[Scope, str, list[str]], tuple[Sequence[str], Sequence[str]]],
    ) -> tuple[list[str], list[str]]:
        """Run a subgraph ``count`` times.

        Args:
            count: int64 scalar.
            carried: values that go from turn to turn, float32.
            body: from the index of the turn (int64 scalar) and the carried values to their new values, and to what
                is stacked over the turns.

        Returns:
            The carried values after the last turn, and the stacked ones, turns as leading axis.
        """
        index, go = self.store.unique("turn"), self.store.unique("go")
        names = [self.store.unique("carried") for _ in carried]
        inputs = [
            helper.make_tensor_value_info(index, TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            *(_value(name) for name in names),
        ]
        stacked = 0

        def build(inner: Scope) -> list[str]:
            nonlocal stacked
            new, rows = body(inner, index, names)
            stacked = len(rows)
            return [inner.op("Identity", go), *new, *rows]

        graph = self.graph("loop", build, inputs)
        graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, TensorProto.BOOL, []))
        outputs = self.op("Loop", count, "", *carried, outputs=len(names) + stacked, body=graph)
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        return outputs[: len(names)], outputs[len(names) :]


def _value(name: str, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """A value of any shape."""
    return helper.make_tensor_value_info(name, kind, None)
