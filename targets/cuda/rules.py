"""TensorRT's published rules for explicit QDQ networks, checked on the graph without TensorRT.

TensorRT refuses some of what breaks them, and quietly runs the rest on float or wrongly, so they are checked before a
bundle is written. :func:`violations` stop a bundle. :func:`recommendations` cost speed only.

Sources, named again at each check: NVIDIA TensorRT documentation, "Working with Quantized Types" with its chapters
"Explicit Quantization" and "Q/DQ Layer-Placement Recommendations"; the support matrix of ONNX-TensorRT; issues of
NVIDIA/TensorRT, onnx/onnx-tensorrt and microsoft/onnxruntime by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnx import ModelProto

from . import number_rules, placement_rules, support_rules
from .graph import GraphView
from .number_rules import Findings
from .profile import ShapeProfile

_NO_PROFILES: Mapping[str, ShapeProfile] = MappingProxyType({})


@dataclass(frozen=True)
class Rule:
    """One rule: its number, what it says, how to mend a graph that breaks it, and the check."""

    number: int
    statement: str
    remedy: str
    check: Callable[[GraphView], Findings]


@dataclass(frozen=True)
class Violation:
    """One place where a graph breaks a rule."""

    number: int
    statement: str
    where: str
    fact: str
    remedy: str

    def __str__(self) -> str:
        return f"rule {self.number} ({self.statement}): {self.where}: {self.fact}; {self.remedy}"


RULES = (
    Rule(1, "int8 only", "quantize with int8 zero-points", number_rules.int8_only),
    Rule(2, "zero-points are 0", "use the symmetric scheme", number_rules.zero_points_are_zero),
    Rule(
        3,
        "scales are constant, finite and above 0",
        "store each scale as an initializer and calibrate again",
        number_rules.scales_are_positive_constants,
    ),
    Rule(
        4,
        "activations per tensor, weights per channel along the kernels' axis",
        "quantize per tensor, or along axis 0 (Conv, ConvTranspose, Gemm with transB=1) or the last (MatMul)",
        number_rules.granularity,
    ),
    Rule(5, "a bias is float", "leave the bias float", number_rules.bias_is_float),
    Rule(6, "graph outputs are float", "remove the Q/DQ pair at the output", placement_rules.outputs_are_float),
    Rule(
        7,
        "a residual input is quantized",
        "put a Q/DQ pair on that input of the Add",
        placement_rules.residual_inputs_are_quantized,
    ),
    Rule(
        8,
        "nothing stands between a weighted operation and its activation",
        "move the Q/DQ pair behind the activation",
        placement_rules.nothing_splits_a_fused_pair,
    ),
    Rule(
        9,
        "the ONNX parser reads opset and operators",
        "export with an opset in range and replace the operator",
        support_rules.parser_reads_it,
    ),
    Rule(11, "Q/DQ pairs are whole and in use", "remove the pair or complete it", placement_rules.pairs_are_whole),
    Rule(
        12,
        "input and weight are quantized together",
        "quantize both or neither",
        placement_rules.weighted_inputs_go_together,
    ),
)

RECOMMENDATIONS = (
    Rule(
        13,
        "the branch that ends in a residual Add stays float",
        "remove the pair for a fused kernel",
        placement_rules.residual_branch_stays_float,
    ),
    Rule(
        14,
        "what reads int8 without weights writes int8",
        "put a Q/DQ pair behind it",
        placement_rules.unweighted_outputs_are_quantized,
    ),
)


def violations(model: ModelProto, profiles: Mapping[str, ShapeProfile] = _NO_PROFILES) -> list[Violation]:
    """Return every place where a graph breaks a rule, by rule number; an empty list is a yes.

    Args:
        model: an explicit QDQ graph, loaded with its external data.
        profiles: the optimization profile of each input with a dynamic batch, as the bundle will state it.
    """
    profile_rule = Rule(
        10,
        "a dynamic batch has an optimization profile",
        "state the smallest, the best and the largest shape",
        lambda view: support_rules.dynamic_inputs_have_profiles(view, profiles),
    )
    return _broken(model, sorted((*RULES, profile_rule), key=lambda rule: rule.number))


def recommendations(model: ModelProto) -> list[Violation]:
    """Return every place where a graph keeps the rules but gives speed away."""
    return _broken(model, RECOMMENDATIONS)


def _broken(model: ModelProto, rules: Iterable[Rule]) -> list[Violation]:
    view = GraphView(model)
    return [
        Violation(rule.number, rule.statement, where, fact, rule.remedy)
        for rule in rules
        for where, fact in rule.check(view)
    ]
