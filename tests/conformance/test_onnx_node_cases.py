"""ONNX's own node cases through LiteRT: every one passes or is refused, and the list of refusals may only shrink.

Of those that TFLite can express, 95 % have to pass.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx_node_cases import (
    Outcome,
    cases_in_scope,
    is_expressible,
    judge_apart,
    operator_of,
    operators_out_of_scope,
)

REFUSED_LIST = Path(__file__).with_name("refused.toml")
FEWEST_IN_SCOPE = 950  # a newer ONNX may drop cases, but not most of them unseen
FEWEST_EXPRESSIBLE, FEWEST_OPERATORS = 850, 140
SHARE_THAT_PASSES = 0.95

# What edge networks use, and what may therefore never be put out of scope.
USED = """
    ArgMax ArgMin Attention AveragePool BatchNormalization Cast Clip Concat Conv ConvTranspose CumSum DepthToSpace
    Einsum Elu Expand Flatten Gather GatherND Gelu Gemm GlobalAveragePool GroupNormalization GRU HardSigmoid HardSwish
    InstanceNormalization LayerNormalization LeakyRelu LogSoftmax LSTM MatMul MaxPool Mish NonMaxSuppression PRelu Pad
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize RNN ScatterND Shape Sigmoid Slice Softmax
    Softplus SpaceToDepth Split Squeeze Swish Tanh Tile TopK Transpose Unsqueeze Where
    Add Sub Mul Div Pow Sqrt Exp Log Abs Neg Floor Ceil Round Min Max Mod And Or Not Xor Equal Greater GreaterOrEqual
    Less LessOrEqual
"""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return judge_apart()


@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    return {name: reason for reason, names in tomllib.loads(REFUSED_LIST.read_text()).items() for name in names}


def names_of(outcomes: list[Outcome], verdict: str) -> set[str]:
    return {outcome.name for outcome in outcomes if outcome.verdict == verdict}


def expressible(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if is_expressible(cases_in_scope()[outcome.name])]


def counted(outcomes: list[Outcome]) -> str:
    operators = {operator_of(cases_in_scope()[outcome.name]) for outcome in outcomes}
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    return f"{len(outcomes)} cases over {len(operators)} operators, {dict(verdicts)}"


def test_node_cases_are_right_or_refused_when_lowered(outcomes, capsys):
    with capsys.disabled():
        print(f"\nONNX node cases: {counted(outcomes)}")
    broken = [outcome for outcome in outcomes if outcome.verdict not in ("passed", "refused")]
    assert broken == []
    assert len(outcomes) >= FEWEST_IN_SCOPE


def test_node_cases_pass_when_tflite_can_express_them(outcomes, capsys):
    chosen = expressible(outcomes)
    share = len(names_of(chosen, "passed")) / len(chosen)
    with capsys.disabled():
        print(f"\nof these expressible: {counted(chosen)}: {100 * share:.2f} % pass")
    assert share >= SHARE_THAT_PASSES
    assert len(chosen) >= FEWEST_EXPRESSIBLE
    assert len({operator_of(cases_in_scope()[outcome.name]) for outcome in chosen}) >= FEWEST_OPERATORS


def test_operators_are_out_of_scope_only_when_tflite_has_none_of_that_name():
    builtins = {name.replace("_", "") for name in vars(schema.BuiltinOperator)}
    without = [operator for operator, reason in operators_out_of_scope().items() if "no operator" in reason]
    assert [operator for operator in without if operator.upper() in builtins] == []


def test_operators_are_out_of_scope_only_when_edge_networks_do_without():
    known = {operator_of(case) for case in cases_in_scope().values()}
    assert set(USED.split()).isdisjoint(operators_out_of_scope())
    assert set(operators_out_of_scope()) <= known, "no case is about these"


def test_node_cases_are_refused_only_when_listed(outcomes, listed):
    reasons = {outcome.name: outcome.reason for outcome in outcomes}
    assert {name: reasons[name] for name in names_of(outcomes, "refused") - set(listed)} == {}


def test_list_of_refusals_shrinks_when_a_case_passes(outcomes, listed):
    assert set(listed) & names_of(outcomes, "passed") == set(), "these pass now: strike them out of refused.toml"
    assert set(listed) <= {outcome.name for outcome in outcomes}, "these are no cases any more"
