"""Finds the tensors of a float graph whose channels can be scaled, and the constants that take the factors in.

If channel ``i`` of a tensor is multiplied by ``s[i] > 0``, what writes it multiplies its weights of that channel and
what reads it divides its own, and the network computes what it did. Between the two may stand whatever passes a
positive factor on: Relu, pooling, the sum of a residual stream, the product with a gate. All tensors that have to be
scaled alike are one group, a whole residual stream for example. A group that reaches anything else is left alone: an
input or output of the graph, an operator that is not homogeneous (Sigmoid, HardSwish), one that mixes channels
(Concat).

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721,
section 4.1, which does this for two layers in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.correct.operands import Operand, constant, is_constant, shape_of

_PASSING = ("Relu", "LeakyRelu", "PRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Pad",
            "Resize", "Flatten", "Reshape", "Squeeze")  # fmt: skip


@dataclass(eq=False)
class ChannelGroup:
    """Tensors that are scaled alike, what writes and reads them, and the lowest upper bound of a Clip among them."""

    axis: int
    num_channels: int
    tensors: list[ir.Value] = field(default_factory=list)
    writers: list[Operand] = field(default_factory=list)
    readers: list[Operand] = field(default_factory=list)
    ceiling: float = math.inf
    free: bool = True

    @property
    def is_normalized(self) -> bool:
        """Whether a layer normalization writes it."""
        return any(operand.node.op_type == "LayerNormalization" for operand in self.writers)

    def observed(self) -> list[str]:
        """Return the names of the tensors that are quantized: not of what an activation function alone takes in."""
        taken_in = (["Relu"], ["Clip"])
        return [str(value.name) for value in self.tensors if [use.node.op_type for use in value.uses()] not in taken_in]

    def multiply(self, factors: NDArray[np.floating]) -> None:
        """Scale the channels of all tensors."""
        for operand in self.writers:
            operand.multiply(factors)
        for operand in self.readers:
            operand.multiply(1 / factors)


def channel_groups(graph: ir.Graph) -> list[ChannelGroup]:
    """Return the groups of tensors whose channels may be scaled, in graph order."""
    finder = _Finder()
    for node in graph:
        finder.visit(node)
    for value in graph.outputs:
        finder.block(value)
    return [group for group in finder.groups() if group.free and group.readers]


class _Finder:
    """Visits nodes in graph order: a group begins where it is written, so its axis is known when it is read."""

    def __init__(self) -> None:
        self._group_of: dict[ir.Value, ChannelGroup] = {}

    def groups(self) -> Iterator[ChannelGroup]:
        yield from dict.fromkeys(self._group_of.values())

    def block(self, value: ir.Value | None) -> None:
        if value is not None and value in self._group_of:
            self._group_of[value].free = False

    def visit(self, node: ir.Node) -> None:
        """Let a node join groups, read from one, begin one; whatever else it reads is not free."""
        groups = [self._group_of.get(value) if value is not None else None for value in node.inputs]
        passed = _passed(node, groups)
        reader = None if groups[:1] in ([], [None]) else _reader(node, groups[0])  # type: ignore[arg-type]
        if passed:
            self._pass_on(node, passed)
        elif reader is not None and groups[0] is not None:
            groups[0].readers.append(reader)
        for index, value in enumerate(node.inputs):
            if index not in passed and not (index == 0 and reader is not None):
                self.block(value)
        if writers := _writers(node):
            axis, operands = writers
            size = operands[0].array().shape[operands[0].axis]
            self._group_of[node.outputs[0]] = ChannelGroup(axis, size, [node.outputs[0]], operands)

    def _pass_on(self, node: ir.Node, passed: Sequence[int]) -> None:
        """Let the tensors that a node passes on, and what it writes, be one group."""
        group, *others = dict.fromkeys(self._group_of[value] for index in passed if (value := node.inputs[index]))
        for other in others:
            group.tensors += other.tensors
            group.writers += other.writers
            group.readers += other.readers
            group.ceiling = min(group.ceiling, other.ceiling)
            group.free &= other.free
            self._group_of.update(dict.fromkeys(other.tensors, group))
        if node.op_type == "Clip":
            group.ceiling = min(group.ceiling, float(constant(node, 2)))
        if node.op_type in ("Add", "Sub") and len(passed) == 1:
            added, behind = 1 - passed[0], len(shape_of(node.outputs[0])) - group.axis
            group.writers.append(Operand(node, added, constant(node, added).ndim - behind))
        group.tensors.append(node.outputs[0])
        self._group_of[node.outputs[0]] = group


def _passed(node: ir.Node, groups: Sequence[ChannelGroup | None]) -> tuple[int, ...]:
    """Return which inputs' channels a node passes on with their factors, if it does."""
    known = [index for index, group in enumerate(groups) if group is not None and _keeps_channels(node, group)]
    if node.op_type in _PASSING:
        return (0,) if 0 in known and _is_homogeneous(node) else ()
    if node.op_type in ("Add", "Sub") and len(node.inputs) == 2:
        if known == [0, 1] and shape_of(node.inputs[0]) == shape_of(node.inputs[1]):
            return (0, 1)
        return tuple(index for index in known if _is_one_a_channel(node, 1 - index, groups[index]))
    if node.op_type == "Mul":
        gated = [index for index in known if _is_gate(node.inputs[1 - index], node.inputs[index])]
        return tuple(gated[:1])
    return ()


def _is_homogeneous(node: ir.Node) -> bool:
    """Whether an operator that looks at each channel by itself passes on a positive factor."""
    if node.op_type == "Clip":
        return len(node.inputs) == 3 and is_constant(node, 1) and is_constant(node, 2) and not constant(node, 1).any()
    if node.op_type == "Pad":
        zero = len(node.inputs) < 3 or node.inputs[2] is None or (is_constant(node, 2) and not constant(node, 2).any())
        return zero or node.attributes.get_string("mode", "constant") != "constant"
    return True


def _keeps_channels(node: ir.Node, group: ChannelGroup) -> bool:
    """Whether the output has the group's channels on the same axis; where the rank changes, nothing but them."""
    shape = shape_of(node.outputs[0])
    if len(shape) <= group.axis or shape[group.axis] != group.num_channels:
        return False
    if node.op_type in ("Flatten", "Reshape", "Squeeze"):
        before = shape_of(node.inputs[0])
        return shape[: group.axis] == before[: group.axis] and all(
            size == 1 for size in (*shape[group.axis + 1 :], *before[group.axis + 1 :])
        )
    return True


def _is_one_a_channel(node: ir.Node, index: int, group: ChannelGroup | None) -> bool:
    """Whether an operand is a constant with one number for each channel."""
    if group is None or not is_constant(node, index):
        return False
    shape, axis = constant(node, index).shape, group.axis - len(shape_of(node.outputs[0]))
    return -axis <= len(shape) and shape[axis] == group.num_channels == math.prod(shape)


def _is_gate(gate: ir.Value | None, gated: ir.Value | None) -> bool:
    """Whether one value multiplies each whole channel."""
    if gate is None or gate is gated:
        return False
    return all(size == 1 for size in shape_of(gate)[2:]) and len(shape_of(gate)) == len(shape_of(gated))


def _reader(node: ir.Node, group: ChannelGroup) -> Operand | None:
    """Return the weights that can divide what a node reads first."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or not is_constant(node, 1):
        return None
    weight, groups = constant(node, 1), node.attributes.get_int("group", 1)
    axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": node.attributes.get_int("transB", 0), "MatMul": 0}[node.op_type]
    if node.op_type == "Conv" and groups == group.num_channels and weight.shape[1] == 1:
        return Operand(node, 1, 0)
    plain = groups == 1 and not node.attributes.get_int("transA", 0) and (node.op_type != "MatMul" or weight.ndim == 2)
    last = node.op_type == "MatMul"
    right_axis = group.axis == (len(shape_of(node.inputs[0])) - 1 if last else 1)
    return Operand(node, 1, axis) if plain and right_axis and weight.shape[axis] == group.num_channels else None


def _writers(node: ir.Node) -> tuple[int, list[Operand]] | None:
    """Return the channel axis of what a node writes, and the constants that can scale it."""
    constants = all(is_constant(node, index) for index, value in enumerate(node.inputs) if index and value is not None)
    bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if not constants or len(node.inputs) < 2:
        return None
    if node.op_type == "LayerNormalization" and constant(node, 1).ndim == 1:
        operands = [Operand(node, 1, 0), *([Operand(node, 2, 0)] if bias else [])]
        return len(shape_of(node.inputs[0])) - 1, operands
    if node.op_type == "MatMul" and constant(node, 1).ndim == 2 and len(shape_of(node.inputs[0])) > 1:
        return len(shape_of(node.outputs[0])) - 1, [Operand(node, 1, 1)]
    if node.op_type == "Gemm":
        axis = 1 - node.attributes.get_int("transB", 0)
        fits = not bias or constant(node, 2).shape[-1:] == constant(node, 1).shape[axis : axis + 1]
        bias_axis = [Operand(node, 2, constant(node, 2).ndim - 1)] if bias and fits else []
        return (1, [Operand(node, 1, axis), *bias_axis]) if fits else None
    if node.op_type == "Conv" or (node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) == 1):
        weight = Operand(node, 1, 0 if node.op_type == "Conv" else 1)
        return 1, [weight, *([Operand(node, 2, 0)] if bias else [])]
    return None
