"""From the stored ONNX graph to the program: find what runs in integers, and lower operator by operator.

An operator runs in integers if each of its operands comes out of a DequantizeLinear, its result goes into one
QuantizeLinear and nowhere else (a Clamp may stand between), and the table says that the kernel takes these scales.
Every other operator computes in float, and gets DEQUANTIZE and QUANTIZE around it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.errors import Refusal
from edgeopt.tflite import clamping
from edgeopt.tflite.constants import Constant, read_array, read_constant
from edgeopt.tflite.emitter import Emitter
from edgeopt.tflite.normal_form import WHY_NOT
from edgeopt.tflite.operators import OPERATORS
from edgeopt.tflite.program import MISFITS, TENSOR_TYPES, Program, Quantization, RefusedError, Tensor
from edgeopt.tflite.shapes import shape_of
from edgeopt.tflite.step import Entry, Operands, Step

_STORED = (ir.DataType.INT8, ir.DataType.INT16)  # what activations are quantized to


def translate(graph: ir.Graph, *, integer_io: bool) -> tuple[Program, list[Refusal]]:
    """Return the program, and every node that cannot be lowered; with refusals the program is not complete."""
    translation = _Translation(graph)
    try:
        translation.declare_inputs(integer_io)
    except RefusedError as error:
        return translation.emitter.program, [Refusal("", "input", str(error))]
    for node in graph:
        translation.lower(node)
    if not translation.refusals:
        translation.declare_outputs(integer_io)
    return translation.emitter.program, translation.refusals


class _Translation:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.emitter = Emitter()
        self.refusals: list[Refusal] = []
        self._tensors: dict[ir.Value, Tensor] = {}
        self._done: set[ir.Node] = set()

    # --- borders ---------------------------------------------------------------------------------------------------

    def declare_inputs(self, integer_io: bool) -> None:
        """Make a tensor of each graph input; of integers where its only reader quantizes it."""
        for value in self.graph.inputs:
            reader = _only_consumer(value, "QuantizeLinear") if integer_io else None
            quantization = _quantization_of(reader) if reader is not None else None
            if reader is None or quantization is None:
                tensor = self.emitter.tensor(_name(value), shape_of(value), _dtype(value))
                self._tensors[value] = tensor
            else:
                tensor = self.emitter.tensor(_name(value), shape_of(value), quantization.dtype, quantization)
                self._tensors[reader.outputs[0]] = tensor
            self.emitter.program.inputs.append((_name(value), tensor))

    def declare_outputs(self, integer_io: bool) -> None:
        """Give each graph output its tensor under its name; a tensor that has a name there already is copied."""
        taken = {tensor for _, tensor in self.emitter.program.inputs}
        for value in self.graph.outputs:
            tensor = (self._integer(value) if integer_io else None) or self._float(value)
            if tensor in taken or tensor.data is not None:
                copy = self.emitter.like(tensor, "copy")
                tensor = self.emitter.reshape(tensor, tensor.shape, copy)
            tensor.name = _name(value)
            taken.add(tensor)
            self.emitter.program.outputs.append((_name(value), tensor))
        self.emitter.remove_dead()
        self.emitter.program.names = {_name(value): tensor for value, tensor in self._tensors.items()}

    # --- nodes -----------------------------------------------------------------------------------------------------

    def lower(self, node: ir.Node) -> None:
        """Lower one node, or note why not."""
        if node in self._done:
            return
        try:
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self._check_dequantize(node)
            elif node.op_type != "Dynamic":
                self._operator(node)
        except (RefusedError, *MISFITS) as error:
            self.refusals.append(Refusal(node.name or "", node.op_type, str(error)))
            self._pretend(node)

    def _operator(self, node: ir.Node) -> None:
        entry = OPERATORS.get((node.domain, node.op_type))
        if entry is None or WHY_NOT in node.metadata_props:
            raise RefusedError(node.metadata_props.get(WHY_NOT, "there is no lowering for this operator"))
        clamp_node = _only_consumer(node.outputs[0], "Clamp")
        end = clamp_node.outputs[0] if clamp_node is not None else node.outputs[0]
        if self._moves_integers(node):
            self._tensors[node.outputs[0]] = self._moved_integers(node, entry)
        elif not self._in_integers(node, entry, _only_consumer(end, "QuantizeLinear"), clamp_node):
            self._float_operator(node, entry, clamp_node)

    def _in_integers(self, node: ir.Node, entry: Entry, quantize: ir.Node | None, clamp_node: ir.Node | None) -> bool:
        """Lower an operator in integers; ``False`` if its kernel has no exact form of these scales or attributes."""
        quantization = _quantization_of(quantize) if quantize is not None else None
        operands = self._integer_operands(node, entry) if quantization is not None else None
        if quantize is None or quantization is None or operands is None:
            return False
        if not entry.integer(tuple(None if i == entry.bias else t for i, t in enumerate(operands)), quantization):
            return False
        wanted = self._output(quantize.outputs[0], quantization, name=_name((clamp_node or node).outputs[0]))
        try:
            self._tensors[quantize.outputs[0]] = self._integer_step(node, entry, operands, wanted, _bounds(clamp_node))
        except RefusedError:
            return False
        self._done |= {quantize} | ({clamp_node} if clamp_node is not None else set())
        return True

    def _moves_integers(self, node: ir.Node) -> bool:
        """Whether an operator stands between a QuantizeLinear and the DequantizeLinear that belongs to it."""
        source = self._tensors.get(node.inputs[0]) if len(node.inputs) == 1 and node.inputs[0] is not None else None
        return source is not None and source.is_integer and node.outputs[0].dtype in _STORED

    def _moved_integers(self, node: ir.Node, entry: Entry) -> Tensor:
        """Lower an operator that moves integers as they are, such as a transpose between two quantized operators."""
        (value,) = node.inputs
        assert value is not None
        source = self._tensors[value]
        output = self._output(node.outputs[0], source.quantization)
        return entry.lower(Step(node, (source,), output, self.emitter))

    def _integer_operands(self, node: ir.Node, entry: Entry) -> Operands | None:
        operands: list[Tensor | None] = []
        for index, value in enumerate(node.inputs):
            tensor = self._integer(value) if value is not None else None
            if tensor is None and value is not None and index == entry.bias and read_constant(value) is not None:
                tensor = self._float(value)
            if tensor is None and value is not None:
                return None
            operands.append(tensor)
        return tuple(operands)

    def _integer_step(
        self, node: ir.Node, entry: Entry, operands: Operands, wanted: Tensor, bounds: tuple[float, float]
    ) -> Tensor:
        low, high = bounds
        code = clamping.fused_code(low, high, wanted.quantization) if entry.fuses and not entry.keeps_scale else None
        if entry.keeps_scale and operands[0] is not None and operands[0].quantization != wanted.quantization:
            written = self.emitter.tensor(
                f"{wanted.name}_own_scale", wanted.shape, wanted.dtype, operands[0].quantization
            )
        else:
            written = wanted
        result = entry.lower(Step(node, operands, written, self.emitter, clamping.NONE if code is None else code))
        result = self.emitter.requantize(result, wanted.per_tensor)
        return result if code is not None else clamping.clamp(self.emitter, result, low, high)

    def _float_operator(self, node: ir.Node, entry: Entry, clamp_node: ir.Node | None) -> None:
        low, high = _bounds(clamp_node)
        code = clamping.fused_code(low, high, None) if entry.fuses else None
        if clamp_node is not None and code is not None:
            output_value = clamp_node.outputs[0]
            self._done.add(clamp_node)
        else:
            output_value, code = node.outputs[0], clamping.NONE
        operands = self._dynamic_operands(node) or tuple(None if v is None else self._float(v) for v in node.inputs)
        output = self._output(output_value, None)
        extra = tuple(self._output(value, None) for value in node.outputs[1:])
        self._tensors.update(zip(node.outputs[1:], extra, strict=True))
        self._tensors[output_value] = entry.lower(Step(node, operands, output, self.emitter, code, extra))

    def _dynamic_operands(self, node: ir.Node) -> Operands | None:
        """Return float data and int8 weights, if the kernel is to quantize the data itself."""
        given = [value for value in node.inputs if value is not None]
        mark = given[0].producer() if node.op_type in ("Conv", "FullyConnected") else None
        if mark is None or mark.op_type != "Dynamic" or mark.inputs[0] is None:
            return None
        return (self._float(mark.inputs[0]), self._integer(given[1]), *map(self._float, given[2:]))

    def _quantize(self, node: ir.Node) -> None:
        output, source = node.outputs[0], node.inputs[0]
        assert source is not None
        if output in self._tensors:
            return
        quantization = _quantization_of(node)
        if quantization is None:
            raise RefusedError("a scale or zero-point that is not a constant for int8 or int16, one for the tensor")
        integer = self._integer(source)
        if integer is not None and integer.dtype == quantization.dtype:
            self._tensors[output] = self.emitter.requantize(integer, quantization)
            return
        target = self._output(output, quantization)
        version = 2 if quantization.dtype == np.int16 else None
        self._tensors[output] = self.emitter.emit("QUANTIZE", [self._float(source)], target, version=version)

    def _check_dequantize(self, node: ir.Node) -> None:
        stored, quantization = node.inputs[0], _quantization_of(node)
        source = self._tensors.get(stored) if stored is not None else None
        if stored is not None and source is not None and quantization is not None and not source.is_integer:
            # The application or a table gives integers: their scale is the one with which all read them.
            alone = all(use.node.op_type == "DequantizeLinear" for use in stored.uses())
            source.quantization = quantization if alone and source.dtype == quantization.dtype else None
        if read_constant(node.outputs[0]) is None and self._integer(node.outputs[0]) is None:
            raise RefusedError("integers that come from elsewhere, or with another scale")

    def _pretend(self, node: ir.Node) -> None:
        """Put tensors in the place of what a refused node would have made, to judge the nodes behind it too."""
        for value in node.outputs:
            quantization = _quantization_of(node) if node.op_type == "QuantizeLinear" else None
            shape = () if value.shape is None else shape_of(value)
            self._tensors[value] = self.emitter.tensor(_name(value), shape, np.dtype(np.float32), quantization)

    # --- values ----------------------------------------------------------------------------------------------------

    def _integer(self, value: ir.Value) -> Tensor | None:
        """Return the integer tensor behind a dequantized value, or ``None`` for a value that exists in float only."""
        producer = value.producer()
        if producer is None or producer.op_type != "DequantizeLinear":
            return None
        constant = read_constant(value)
        if constant is not None:
            return self._constant(value, constant)
        source = producer.inputs[0]
        tensor = self._tensors.get(source) if source is not None else None
        if tensor is None or not tensor.is_integer or tensor.quantization != _quantization_of(producer):
            return None
        return tensor

    def _float(self, value: ir.Value) -> Tensor:
        if value not in self._tensors:
            constant = read_constant(value)
            integer = self._integer(value) if constant is None else None
            if constant is not None:
                self._tensors[value] = self._constant(value, Constant(constant.real()))
            elif integer is not None:
                target = self.emitter.tensor(_name(value), integer.shape, np.dtype(np.float32))
                self._tensors[value] = self.emitter.emit("DEQUANTIZE", [integer], target)
            else:
                raise RefusedError(f"its input {_name(value)!r} has no value")
        return self._tensors[value]

    def _constant(self, value: ir.Value, constant: Constant) -> Tensor:
        if not constant.array.size:
            raise RefusedError(f"a constant without elements, {_name(value)!r}")
        quantization = None
        if constant.scales is not None and constant.zero_points is not None:
            scales = tuple(float(scale) for scale in constant.scales)
            points = tuple(int(point) for point in constant.zero_points)
            quantization = Quantization(scales, points, constant.axis, constant.array.dtype)
        return self.emitter.constant(_name(value), constant.array, quantization)

    def _output(self, value: ir.Value, quantization: Quantization | None, name: str | None = None) -> Tensor:
        dtype = _dtype(value) if quantization is None else quantization.dtype
        return self.emitter.tensor(name or _name(value), shape_of(value), dtype, quantization)


def _only_consumer(value: ir.Value, op_type: str) -> ir.Node | None:
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].idx != 0 or uses[0].node.op_type != op_type:
        return None
    return uses[0].node


def _bounds(clamp_node: ir.Node | None) -> tuple[float, float]:
    if clamp_node is None:
        return -np.inf, np.inf
    return clamp_node.attributes.get_float("low"), clamp_node.attributes.get_float("high")


def _quantization_of(node: ir.Node) -> Quantization | None:
    """Return the quantization of a QuantizeLinear or DequantizeLinear per tensor, or ``None`` for any other."""
    scale = read_array(node.inputs[1])
    zero_point = read_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.size != 1 or zero_point is None or zero_point.size != 1:
        return None
    if not np.isfinite(scale).all() or not (scale > 0).all():
        return None
    if zero_point.dtype != np.int8 and (zero_point.dtype != np.int16 or zero_point.any()):
        return None
    return Quantization((float(scale.reshape(())),), (int(zero_point.reshape(())),), dtype=zero_point.dtype)


def _name(value: ir.Value) -> str:
    return value.name or ""


def _dtype(value: ir.Value) -> np.dtype[Any]:
    if value.dtype is None:
        raise RefusedError(f"{_name(value)!r} has no dtype")
    dtype = np.dtype(value.dtype.numpy())
    if dtype.name not in TENSOR_TYPES:
        raise RefusedError(f"{_name(value)!r} is {dtype}, for which there are no kernels")
    return dtype
