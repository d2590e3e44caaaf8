"""Quantizer groups: what has to change together if a scale is to change.

Tensors that share a scale are one group; with them go the weights that multiply them, whose products carry that scale.
A tensor stays quantized as long as any node wants it so: the nodes of a group are all that read or write its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.quantize.audit import graph_macs
from edgeopt.quantize.dynamic import has_dynamic_kernel
from edgeopt.quantize.placement import QuantizedNode, quantized_nodes, scale_groups
from edgeopt.quantize.scheme import Family, Scheme
from edgeopt.settings import QuantizeSettings


@dataclass(frozen=True)
class QuantizerGroup:
    """One group; everything by name, in graph order.

    Attributes:
        name: of its first tensor.
        tensors: that share one scale.
        constants: the nodes whose weights or constant operands meet these tensors.
        nodes: that read or write the tensors, and the activation functions that they absorb.
        dynamic: those of the nodes that have kernels for dynamic activations.
        work: multiply-accumulates of these nodes, and the values of the tensors: what leaves the int8 kernels.
    """

    name: str
    tensors: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[str, ...]
    dynamic: tuple[str, ...]
    work: int


def quantizer_groups(model: ir.Model, scheme: Scheme, settings: QuantizeSettings) -> list[QuantizerGroup]:
    """Return the groups of a float graph under a plan; nodes that the plan names itself are not theirs to move."""
    nodes = quantized_nodes(model.graph, scheme, settings)
    macs = graph_macs(ir.to_proto(model))
    found = []
    for members in scale_groups(nodes, scheme):
        touching = [item for item in nodes if any(value in members for value in (*item.reads, *item.writes))]
        names = [name for item in touching for name in _names(item) if name not in settings.nodes]
        if names:
            found.append(
                QuantizerGroup(
                    name=str(members[0].name),
                    tensors=tuple(str(value.name) for value in members),
                    constants=tuple(str(item.node.name) for item in touching if _first_read(item) in members),
                    nodes=tuple(dict.fromkeys(names)),
                    dynamic=tuple(str(item.node.name) for item in touching if _has_dynamic_kernel(item)),
                    work=sum(macs.get(name, 0) for name in names) + sum(map(_num_values, members)),
                )
            )
    return found


def _names(item: QuantizedNode) -> Sequence[str]:
    """Return a node's name and that of an activation function which it absorbs."""
    last = item.writes[0].producer()
    return [str(item.node.name)] if last in (None, item.node) else [str(item.node.name), str(last and last.name)]


def _has_dynamic_kernel(item: QuantizedNode) -> bool:
    return item.family is Family.WEIGHTED and has_dynamic_kernel(item.node)


def _first_read(item: QuantizedNode) -> ir.Value | None:
    return next((value for value in item.reads if value.const_value is None), None)


def _num_values(value: ir.Value) -> int:
    return math.prod(size for size in value.shape or () if isinstance(size, int))
