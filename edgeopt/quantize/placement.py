"""Decides which tensors of a float graph are quantized, and with which scale and zero-point.

Our own placement rather than ONNX Runtime's quantizer, because one graph must please three runtimes at once:

- an activation function is absorbed by the operator before it, so that nothing stands between a convolution and its
  activation (every runtime fuses that pair, and ONNX Runtime's quantizer cannot be told where not to put Q/DQ);
- tensors that a kernel may not rescale (pooling, reshaping, joining) form groups that share one scale;
- outputs whose scale LiteRT prescribes (Softmax, Sigmoid, Tanh) get it, in every bundle;
- operators of 8 and of 16 bits stand side by side: a tensor between them is requantized for its reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from edgeopt.affine import QuantParams, symmetric_int16
from edgeopt.artifacts import Ranges, TensorRange
from edgeopt.errors import QuantizationError, did_you_mean
from edgeopt.quantize.agreement import agreeing_params
from edgeopt.quantize.dynamic import has_dynamic_kernel
from edgeopt.quantize.scheme import Family, Scheme
from edgeopt.settings import QuantizeSettings

Bits = Literal["int8", "int16"]
BITS: tuple[Bits, ...] = get_args(Bits)
Params = dict[Bits, dict[ir.Value, QuantParams]]

_ACTIVATION_FUNCTIONS = ("Relu", "Clip")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class QuantizedNode:
    """A node that runs on integers: the activations it reads, and what it writes (past an absorbed activation).

    A dynamic one neither reads nor writes a tensor whose scale the graph knows.
    """

    node: ir.Node
    family: Family
    reads: tuple[ir.Value, ...]
    writes: tuple[ir.Value, ...]
    precision: Bits | Literal["dynamic"] = "int8"


def quantized_nodes(graph: ir.Graph, scheme: Scheme, settings: QuantizeSettings) -> list[QuantizedNode]:
    """Return the nodes that the scheme runs on integers, in graph order.

    Raises:
        QuantizationError: if ``nodes`` names a node that is not there, or makes one dynamic that has no such kernel.
    """
    names = [str(node.name) for node in graph]
    for name in settings.nodes:
        if name not in names:
            raise QuantizationError(f"quantize.nodes: there is no node {name!r}", hint=did_you_mean(name, names))
    found: list[QuantizedNode] = []
    absorbed: set[ir.Node] = set()
    written: dict[ir.Value, Bits] = {}
    for node in graph:
        placement = scheme.operators.get(node.op_type)
        if placement is None or node in absorbed or not _is_quantizable(node):
            continue
        precision = settings.nodes.get(str(node.name), settings.precision)
        if placement.family is Family.KEEPING and node.name not in settings.nodes and node.inputs[0] in written:
            precision = written[node.inputs[0]]
        if precision == "dynamic":
            found += _dynamic_node(node, placement.family, named=node.name in settings.nodes)
        if precision != "int8" and precision != "int16":
            continue
        activation = _activation_after(node)
        absorbs = placement.family in (Family.WEIGHTED, Family.RESCALING)
        if activation is not None and absorbs and settings.nodes.get(str(activation.name), precision) == precision:
            absorbed.add(activation)
            writes = tuple(activation.outputs)
        else:
            writes = tuple(node.outputs)
        reads = tuple(_reads(node, placement.activations))
        if scheme.fuses_residual and node.op_type == "Add":
            reads = _residual_only(reads)
        found.append(QuantizedNode(node, placement.family, reads, writes, precision))
        written.update(dict.fromkeys(writes, precision))
    return found


def _dynamic_node(node: ir.Node, family: Family, *, named: bool) -> list[QuantizedNode]:
    if family is Family.WEIGHTED and has_dynamic_kernel(node):
        return [QuantizedNode(node, family, (), (), "dynamic")]
    if named:
        raise QuantizationError(
            f"quantize.nodes: {node.op_type} {node.name!r} has no dynamic kernel",
            hint="products with a constant matrix and convolutions of one group and batch 1 have it",
        )
    return []


def quantized_tensors(graph: ir.Graph, scheme: Scheme, settings: QuantizeSettings) -> tuple[str, ...]:
    """Return the names of the tensors whose ranges the scheme needs, in graph order."""
    nodes = quantized_nodes(graph, scheme, settings)
    return tuple(dict.fromkeys(str(value.name) for node in nodes for value in _touched(node, scheme)))


def activation_params(nodes: list[QuantizedNode], ranges: Ranges, scheme: Scheme) -> Params:
    """Return scale and zero-point of every quantized tensor and constant operand, for 8 and for 16 bits.

    They are equal within a group that shares one, and where the scheme's kernels write integers, scales of 8 bits are
    widened until all runtimes round alike.

    Raises:
        QuantizationError: if a tensor has no range or a constant is not finite.
    """
    return {bits: _params_of([item for item in nodes if item.precision == bits], ranges, scheme, bits) for bits in BITS}


def _params_of(nodes: list[QuantizedNode], ranges: Ranges, scheme: Scheme, bits: Bits) -> dict[ir.Value, QuantParams]:
    """Return what the nodes of one precision need."""
    params_for = scheme.activation_params if bits == "int8" else symmetric_int16
    known = ranges.tensors if bits == "int8" else ranges.observed or ranges.tensors  # 65,536 steps need no clipping
    # The prescribed scales are those of 8 bits; at 16 the kernels that prescribe one are not used.
    prescribed = scheme.fixed_outputs if bits == "int8" else {}
    fixed = {
        value: prescribed[item.node.op_type]
        for item in nodes
        for value in item.writes
        if item.node.op_type in prescribed
    }
    params: dict[ir.Value, QuantParams] = {}
    free: dict[ir.Value, list[ir.Value]] = {}
    for members in scale_groups(nodes, scheme, fixed):
        given = next((fixed[value] for value in members if value in fixed), None)
        params.update(dict.fromkeys(members, given or params_for(*_joint_range(members, known))))
        if given is None:
            free.update(dict.fromkeys(members, members))
    constants = (value for item in nodes for value in item.reads if value.const_value is not None)
    params.update((value, params_for(*_bounds(value))) for value in constants)
    if not nodes or not scheme.outputs or bits != "int8":
        return params
    writes = {item.node: item.writes[0] for item in nodes}
    graph = nodes[0].node.graph
    return agreeing_params([(node, writes.get(node, node.outputs[0])) for node in graph or ()], params, free)


def scale_groups(
    nodes: Sequence[QuantizedNode], scheme: Scheme, fixed: Mapping[ir.Value, QuantParams] = MappingProxyType({})
) -> list[list[ir.Value]]:
    """Return the tensors that share one scale, group by group, in the order in which ``nodes`` touch them.

    What would be joined with a tensor whose scale is ``fixed`` keeps its own.
    """
    groups = _Groups()
    for item in nodes:
        members = list(_touched(item, scheme))
        for value in members:
            groups.add(value)
        shares = item.family is Family.KEEPING or (
            item.family is Family.JOINING and not any(groups.contains_any(value, fixed) for value in members)
        )
        if shares and scheme.outputs:
            groups.join(members)
    return list(groups)


def _touched(item: QuantizedNode, scheme: Scheme) -> Iterator[ir.Value]:
    yield from (value for value in item.reads if value.const_value is None)
    if scheme.outputs:
        yield from item.writes


def _joint_range(members: list[ir.Value], ranges: Mapping[str, TensorRange]) -> tuple[float, float]:
    missing = [str(value.name) for value in members if value.name not in ranges]
    if missing:
        raise QuantizationError(f"tensor {missing[0]!r} was not calibrated", hint="rebuild with --force")
    found = [ranges[str(value.name)] for value in members]
    return min(item.minimum for item in found), max(item.maximum for item in found)


def _bounds(constant: ir.Value) -> tuple[float, float]:
    assert constant.const_value is not None
    data = constant.const_value.numpy()
    if not np.isfinite(data).all():
        raise QuantizationError(f"constant {constant.name!r} has NaN or infinite values")
    return float(data.min()), float(data.max())


def _is_quantizable(node: ir.Node) -> bool:
    first = node.inputs[0] if node.inputs else None
    if first is None or any(value.dtype != ir.DataType.FLOAT for value in node.outputs):
        return False
    if node.op_type in _WEIGHTED:
        weight = node.inputs[1]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        constant = weight is not None and weight.const_value is not None and len(weight.const_value.shape) > 1
        return constant and first.const_value is None and (bias is None or bias.const_value is not None)
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
        return False
    if node.op_type in ("Add", "Sub", "Mul"):
        return any(value is not None and value.const_value is None for value in node.inputs)
    return first.const_value is None


def _reads(node: ir.Node, indices: tuple[int, ...] | None) -> Iterator[ir.Value]:
    chosen = range(len(node.inputs)) if indices is None else indices
    for index in chosen:
        value = node.inputs[index]
        if value is not None and value.dtype == ir.DataType.FLOAT:
            yield value


def _residual_only(reads: tuple[ir.Value, ...]) -> tuple[ir.Value, ...]:
    """Leave out the branch that a weighted operator computes for this sum alone, if the other side is quantized."""
    for branch in reversed(reads):
        producer = branch.producer()
        if producer is not None and producer.op_type in _WEIGHTED and len(branch.uses()) == 1:
            return tuple(value for value in reads if value is not branch)
    return reads


def _activation_after(node: ir.Node) -> ir.Node | None:
    """Return the Relu or Clip with constant bounds that alone reads what ``node`` writes."""
    output = node.outputs[0]
    uses = output.uses()
    if len(node.outputs) != 1 or len(uses) != 1 or output.is_graph_output():
        return None
    after = next(iter(uses)).node
    if after.op_type not in _ACTIVATION_FUNCTIONS or after.inputs[0] is not output:
        return None
    constant = all(value is None or value.const_value is not None for value in after.inputs[1:])
    return after if constant else None


class _Groups:
    """Tensors that share one scale, kept in the order in which they were seen."""

    def __init__(self) -> None:
        self._group_of: dict[ir.Value, list[ir.Value]] = {}

    def __iter__(self) -> Iterator[list[ir.Value]]:
        seen: set[int] = set()
        for group in self._group_of.values():
            if id(group) not in seen:
                seen.add(id(group))
                yield group

    def add(self, value: ir.Value) -> None:
        self._group_of.setdefault(value, [value])

    def contains_any(self, value: ir.Value, wanted: Mapping[ir.Value, QuantParams]) -> bool:
        return any(member in wanted for member in self._group_of[value])

    def join(self, values: list[ir.Value]) -> None:
        merged = self._group_of[values[0]]
        for value in values[1:]:
            other = self._group_of[value]
            if other is not merged:
                merged.extend(other)
                for member in other:
                    self._group_of[member] = merged
