"""The record of which values of a QDQ graph hold a tensor of the float graph, kept beside the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeopt.artifacts import QdqModel, canonical_json
from edgeopt.inspection import Place

_FILE = "tensors.json"


@dataclass(frozen=True)
class QuantizedNames:
    """The value that holds a tensor's integers, and the one that holds what they stand for; equal for a float one."""

    integers: str
    real: str


def write_names(names: Mapping[str, QuantizedNames], folder: Path) -> None:
    """Write the record beside a graph."""
    content = {name: [item.integers, item.real] for name, item in names.items()}
    (folder / _FILE).write_text(canonical_json(content), encoding="utf-8")


def read_names(source: QdqModel) -> dict[str, QuantizedNames]:
    """Read the record that lies beside a graph."""
    content = json.loads((source.path.parent / _FILE).read_text(encoding="utf-8"))
    return {name: QuantizedNames(*pair) for name, pair in content.items()}


def network_places(names: Mapping[str, QuantizedNames], stored: Mapping[str, Place]) -> dict[str, Place]:
    """Return where a lowered file holds each tensor of the float graph that it has.

    Args:
        names: the quantizer's record.
        stored: the lowering's record: where the file holds the values of the QDQ graph.
    """
    found = {name: stored.get(item.real) or stored.get(item.integers) for name, item in names.items()}
    return {name: place for name, place in found.items() if place is not None}


def own_places(model: ir.Model) -> dict[str, Place]:
    """Return the places of the values of an ONNX graph that keeps the QDQ graph's names and orders of axes."""
    values = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    return {str(value.name): Place(str(value.name)) for value in values}
