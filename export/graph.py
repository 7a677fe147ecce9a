"""A thin builder over onnx-ir: nodes, inline constants, and weights that live in the external data file.

Offsets follow from the shapes alone, so the same graph can be built, serialised and measured before any weight exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edge_svd.runtime.schema import WEIGHTS_NAME

Array = np.ndarray[Any, Any]
Reader = Callable[[str], Array]
"""Name of a checkpoint tensor → its values."""

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
DOMAIN = "edge_svd"
"""Of our model-local functions; onnxruntime inlines them."""

ALIGNMENT = 64
"""Offsets in the data file: a cache line, and the width of the widest vector load."""

FLOAT, FLOAT16, INT8, INT32, INT64, UINT8, UINT16, UINT32, BFLOAT16 = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.INT8,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT8,
    ir.DataType.UINT16,
    ir.DataType.UINT32,
    ir.DataType.BFLOAT16,
)

CACHES = {"float32": FLOAT, "int8": INT8}
"""Kind of KV cache → what its elements are in the graphs."""


@dataclass(frozen=True)
class Weight:
    """One tensor of the data file; `chunks` reads it from a checkpoint in pieces, in row-major order."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int
    chunks: Callable[[Reader], Iterator[Array]]

    @property
    def length(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)


class Builder:
    """Collects nodes and weights; equal constants and equal expressions on them are made once."""

    def __init__(self, name: str = "decoder") -> None:
        self.name = name
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, Weight] = {}
        self.end = 0
        self._initializers: dict[str, ir.Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._shared: dict[tuple[Any, ...], ir.Value] = {}
        self._names: dict[str, int] = {}
        self._functions: dict[str, FunctionBuilder] = {}

    def function(self, name: str, make: Callable[[], FunctionBuilder]) -> str:
        """Declare a model-local function, once; returns its name, to be used as an operator of `DOMAIN`."""
        if name not in self._functions:
            self._functions[name] = make()
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        outputs: Sequence[str] | int = 1,
        **attributes: Any,
    ) -> list[ir.Value]:
        """Append an operator; `outputs` are names ("" for one that is not wanted), or how many to name after it."""
        number = self._names[op] = self._names.get(op, -1) + 1
        name = f"{op}_{number}"
        names = (
            [name if index == 0 else f"{name}.{index}" for index in range(outputs)]
            if isinstance(outputs, int)
            else outputs
        )
        values = [ir.Value(name=output) for output in names]
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        self.nodes.append(ir.Node(domain, op, list(inputs), attrs, outputs=values, name=name))
        return values

    def op(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append an operator with one output."""
        return self.node(op, inputs, domain=domain, **attributes)[0]

    def shared(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Like `op`, but the same operator on the same inputs is appended only once."""
        key = (
            op,
            domain,
            *(id(value) for value in inputs),
            *sorted((name, str(value)) for name, value in attributes.items()),
        )
        if key not in self._shared:
            self._shared[key] = self.op(op, *inputs, domain=domain, **attributes)
        return self._shared[key]

    def constant(self, value: Any, dtype: Any) -> ir.Value:
        """A small constant inside the graph file: onnxruntime's shape inference does not look into external data."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self._constants[key] = self._initializer(ir.Tensor(array, name=name))
        return self._constants[key]

    def weight(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], chunks: Callable[[Reader], Iterator[Array]]
    ) -> ir.Value:
        """A tensor of the data file, placed behind the ones asked for before; asking again gives the same one."""
        if name not in self.weights:
            weight = Weight(name, dtype, shape, self.end, chunks)
            self.weights[name] = weight
            self.end = -(-(weight.offset + weight.length) // ALIGNMENT) * ALIGNMENT
            self._initializer(
                ir.ExternalTensor(WEIGHTS_NAME, weight.offset, weight.length, dtype, shape=ir.Shape(shape), name=name)
            )
        return self._initializers[name]

    def plain(self, name: str, length: int) -> ir.Value:
        """A float32 vector that the checkpoint holds under the same name (norms, biases, rotary frequencies)."""
        return self.weight(name, FLOAT, (length,), lambda read: iter([read(name)]))

    def model(self, inputs: Sequence[ir.Value], outputs: Iterable[ir.Value]) -> bytes:
        """Serialise; equal calls give equal bytes."""
        graph = ir.Graph(
            inputs,
            list(outputs),
            nodes=self.nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET, MICROSOFT: 1} | ({DOMAIN: 1} if self._functions else {}),
            name=self.name,
        )
        functions = [made.function(name) for name, made in self._functions.items()]
        proto = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION, producer_name="edge-svd", functions=functions))
        return bytes(proto.SerializeToString(deterministic=True))

    def _initializer(self, tensor: ir.Tensor | ir.ExternalTensor) -> ir.Value:
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._initializers[str(tensor.name)] = value
        return value


class FunctionBuilder:
    """Collects the nodes of one model-local function; constants are nodes, since a function has no initializers."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs = [ir.Value(name=name) for name in inputs]
        self.outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []

    def op(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Append an operator with one output."""
        output = ir.Value(name=f"v{len(self._nodes)}")
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        self._nodes.append(ir.Node("", op, list(inputs), attrs, outputs=[output]))
        return output

    def constant(self, value: Any, dtype: Any) -> ir.Value:
        return self.op("Constant", value=ir.Tensor(np.asarray(value, dtype)))

    def function(self, name: str) -> ir.Function:
        graph = ir.Graph(self.inputs, self.outputs, nodes=self._nodes, opset_imports={"": OPSET}, name=name)
        return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def tensor_value(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """A typed graph input or output."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
