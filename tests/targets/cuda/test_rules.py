"""TensorRT's rules: one graph that keeps them all, and for each rule the smallest changes that break it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser
from tensorrt_graphs import ADVISED, BREAKING, CONFORMING, KEEPING, PAIR, changed

from edgeopt.targets.cuda.profile import ShapeProfile
from edgeopt.targets.cuda.rules import RECOMMENDATIONS, RULES, recommendations, violations
from edgeopt.targets.cuda.support_rules import oldest_tensorrt, support_matrix


def rules_broken(model: onnx.ModelProto, **profiles: ShapeProfile) -> set[int]:
    return {violation.number for violation in violations(model, profiles)}


def test_violations_are_none_when_the_graph_is_as_documented() -> None:
    model = parser.parse_model(CONFORMING)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.ones((1, 2, 4, 4), np.float32)})
    assert logits.shape == (1, 3)
    assert violations(model) == []
    assert recommendations(model) == []


@pytest.mark.parametrize("name", BREAKING)
def test_violations_name_the_rule_when_the_graph_breaks_it(name: str) -> None:
    rule, changes = BREAKING[name]
    also = {1} if name == "computed-zero-point" else set()  # what is computed has no type that could be checked
    assert rules_broken(changed(*changes)) == {rule} | also


@pytest.mark.parametrize("rule", range(1, 13))
def test_violations_cover_every_rule_when_all_examples_are_counted(rule: int) -> None:
    assert any(number == rule for number, _ in BREAKING.values())


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_violations_name_rule_3_when_a_scale_is_not_finite(scale: float) -> None:
    model = changed()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([scale], np.float32), "s"))
    assert rules_broken(model) == {3}


@pytest.mark.parametrize("name", KEEPING)
def test_violations_are_none_when_the_graph_keeps_the_rules_another_way(name: str) -> None:
    assert [str(violation) for violation in violations(changed(*KEEPING[name]))] == []


def test_violations_are_none_when_nothing_is_quantized() -> None:
    text = """
    <ir_version: 9, opset_import: ["": 18]>
    network (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2,2,1,1] w = {1, 2, 3, 4}>
    { a = Conv (x, w)
      b = Relu (a)
      y = Add (x, b) }
    """
    assert violations(parser.parse_model(text)) == []


def test_violations_say_where_what_and_how_to_mend_when_printed() -> None:
    (violation,) = violations(changed(("v_zero = {0, 0}", "v_zero = {0, 7}")))
    assert str(violation) == (
        "rule 2 (zero-points are 0): DequantizeLinear -> 'v_d': zero-point 7, expected 0; use the symmetric scheme"
    )


DYNAMIC = [("float[1,2,4,4] image", "float[N,2,4,4] image"), ("float[1,3] logits", "float[N,3] logits")]


def shapes(low: int, best: int, high: int, side: int = 4) -> ShapeProfile:
    return ShapeProfile((low, 2, side, side), (best, 2, side, side), (high, 2, side, side))


@pytest.mark.parametrize(
    ("profiles", "fact"),
    [
        ({"image": shapes(1, 8, 8)}, None),
        ({}, "is dynamic and has no profile"),
        ({"image": shapes(0, 8, 8)}, "axis 0 goes 0, 8, 8"),
        ({"image": shapes(1, 9, 8)}, "axis 0 goes 1, 9, 8"),
        ({"image": shapes(1, 8, 8, side=5)}, "axis 2 goes from 5 to 5, but the input is fixed at 4"),
        ({"image": ShapeProfile((1, 2), (1, 2), (1, 2))}, "has 2 dimensions, expected 4"),
        ({"image": shapes(1, 8, 8), "imag": shapes(1, 8, 8)}, "is for no input of the graph"),
    ],
)
def test_violations_judge_the_profile_when_the_batch_is_dynamic(
    profiles: dict[str, ShapeProfile], fact: str | None
) -> None:
    found = violations(changed(*DYNAMIC), profiles)
    assert [violation.number for violation in found] == ([] if fact is None else [10])
    assert fact is None or fact in found[0].fact


@pytest.mark.parametrize("name", ADVISED)
def test_recommendations_name_the_rule_when_speed_is_given_away(name: str) -> None:
    rule, changes = ADVISED[name]
    model = changed(*changes)
    assert violations(model) == []
    assert [found.number for found in recommendations(model)] == [rule]


def test_recommendations_leave_one_branch_when_both_are_convolutions() -> None:
    both = (
        "two = Conv (act_d, v_d, bias)\n  " + PAIR.format("two") + PAIR.format("narrow") + "sum = Add (two_d, narrow_d)"
    )
    assert [found.number for found in recommendations(changed(("sum = Add (act_d, narrow)", both)))] == [13]


def test_rules_have_numbers_of_their_own_and_name_their_source_when_listed() -> None:
    numbers = [rule.number for rule in (*RULES, *RECOMMENDATIONS)]
    assert sorted([*numbers, 10]) == list(range(1, 15))
    for rule in (*RULES, *RECOMMENDATIONS):
        doc = rule.check.__doc__ or ""
        assert f" {rule.number}: " in doc
        assert "Source: " in doc


def test_support_matrix_names_only_onnx_operators_when_read() -> None:
    matrix = support_matrix()
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    assert matrix.operators - known == set()
    assert set(matrix.constant_inputs) <= matrix.operators
    assert {"Conv", "Gemm", "QuantizeLinear", "DequantizeLinear"} <= matrix.operators
    assert "QLinearConv" not in matrix.operators


@pytest.mark.parametrize(("opset", "release"), [(13, "8.4"), (17, "8.5"), (18, "10.0"), (21, "10.15"), (25, None)])
def test_oldest_tensorrt_follows_the_opset_when_asked(opset: int, release: str | None) -> None:
    assert oldest_tensorrt(changed(('"": 18', f'"": {opset}'))) == release
