"""Rules 9 and 10: what TensorRT's ONNX parser reads, and what an engine with dynamic shapes needs.

The facts stand in ``support_matrix.toml``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from onnx import ModelProto

from .graph import GraphView, input_at, label
from .number_rules import Findings
from .profile import ShapeProfile


@dataclass(frozen=True)
class SupportMatrix:
    """Which opsets and operators a TensorRT release reads."""

    tensorrt: str
    min_opset: int
    max_opset: int
    operators: frozenset[str]
    constant_inputs: Mapping[str, tuple[int, ...]]
    newest_opset: Mapping[str, int]


@cache
def support_matrix() -> SupportMatrix:
    """Read ``support_matrix.toml``."""
    facts = tomllib.loads(resources.files(__package__).joinpath("support_matrix.toml").read_text(encoding="utf-8"))
    return SupportMatrix(
        tensorrt=facts["tensorrt"],
        min_opset=facts["min_opset"],
        max_opset=facts["max_opset"],
        operators=frozenset(facts["operators"]),
        constant_inputs={name: tuple(indices) for name, indices in facts["constant_inputs"].items()},
        newest_opset=facts["newest_opset"],
    )


def oldest_tensorrt(model: ModelProto) -> str | None:
    """Return the oldest TensorRT release known to read the model's opset; ``None`` if none is."""
    opset = _opset(model)
    return next((release for release, newest in support_matrix().newest_opset.items() if opset <= newest), None)


def parser_reads_it(view: GraphView) -> Findings:
    """Rule 9: the opset is in range and every operator is in the support matrix, within its restrictions.

    Source: ONNX-TensorRT, docs/operators.md, operator support matrix.
    """
    matrix = support_matrix()
    opset = _opset(view.model)
    if not matrix.min_opset <= opset <= matrix.max_opset:
        yield "opset", f"{opset}, expected {matrix.min_opset} to {matrix.max_opset}"
    for node in view.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield label(node), f"is of the domain {node.domain!r}, expected a standard operator"
        elif node.op_type not in matrix.operators:
            yield label(node), "is not in the support matrix"
        for index in matrix.constant_inputs.get(node.op_type, ()):
            name = input_at(node, index)
            if name and view.constant(name) is None:
                yield label(node), f"input {name!r} is computed, expected a constant"
        if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
            yield label(node), "asks for indices, which are not supported"


def dynamic_inputs_have_profiles(view: GraphView, profiles: Mapping[str, ShapeProfile]) -> Findings:
    """Rule 10: every input with a dynamic dimension has an optimization profile that fits it.

    Source: NVIDIA TensorRT documentation, "Working with Dynamic Shapes"; IOptimizationProfile.
    """
    initializers = {initializer.name for initializer in view.model.graph.initializer}
    declared = {
        value.name: tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims)
        for value in view.model.graph.input
        if value.name not in initializers and (dims := value.type.tensor_type.shape.dim) is not None
    }
    for name, shape in declared.items():
        if name in profiles:
            problem = profiles[name].problem(shape)
            if problem:
                yield f"input {name!r}", f"profile {problem}"
        elif any(isinstance(size, str) for size in shape):
            yield f"input {name!r}", f"shape {list(shape)} is dynamic and has no profile"
    for name in profiles:
        if name not in declared:
            yield f"profile {name!r}", "is for no input of the graph"


def _opset(model: ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
