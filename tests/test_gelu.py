"""Gelu spelt out with Erf: found in every order of its factors, and nothing else taken for it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tflite_graphs import GraphWriter
from tflite_runtimes import file_of, lowered, run_tflite

from edgeopt.gelu import name_gelus

X = np.linspace(-5, 5, 101, dtype=np.float32).reshape(1, -1)
SQRT_2 = math.sqrt(2)


def spelt_out(order: str, *, divides: bool = True, root: float = SQRT_2, half: float = 0.5, one: float = 1.0):
    """Write a Gelu whose last factors are multiplied in an order such as ``(e*x)*h``; other numbers make it another."""
    write = GraphWriter()
    x = write.input("x", (1, 101))
    constants = {"h": write.constant(np.float32(half)), "one": write.constant(np.array([one], np.float32))}
    scale = write.constant(np.float32(root if divides else 1 / root))
    erf = write.node("Erf", write.node("Div" if divides else "Mul", x, scale))
    factors = {"x": x, "h": constants["h"], "e": write.node("Add", erf, constants["one"])}
    inner, outer = order.replace("(", "").split(")*")
    product = write.node("Mul", *(factors[name] for name in inner.split("*")))
    write.output(write.node("Mul", product, factors[outer], name="y"))
    return write


def answer(model: ir.Model) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


@pytest.mark.parametrize("divides", [True, False])
@pytest.mark.parametrize("order", ["(e*x)*h", "(x*e)*h", "(h*e)*x", "(e*h)*x", "(x*h)*e", "(h*x)*e"])
def test_name_gelus_keeps_the_answer_when_factors_are_in_any_order(order: str, divides: bool) -> None:
    model = ir.from_proto(spelt_out(order, divides=divides).model(opset=20))
    before = answer(model)
    assert name_gelus(model.graph) == 1
    assert [node.op_type for node in model.graph if node.outputs[0].is_graph_output()] == ["Gelu"]
    np.testing.assert_allclose(answer(model), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("other", [{"root": 1.5}, {"half": 0.25}, {"one": 2.0}], ids=str)
@pytest.mark.parametrize("order", ["(e*x)*h", "(h*e)*x", "(x*h)*e"])
def test_name_gelus_finds_none_when_a_number_is_another(order: str, other: dict[str, float]) -> None:
    assert name_gelus(ir.from_proto(spelt_out(order, **other).model()).graph) == 0


def test_name_gelus_finds_none_when_someone_else_reads_what_is_inside() -> None:
    write = spelt_out("(e*x)*h")
    write.output(next(node.output[0] for node in write.nodes if node.op_type == "Add"))
    assert name_gelus(ir.from_proto(write.model()).graph) == 0


def test_lower_writes_one_operator_when_a_gelu_is_spelt_out() -> None:
    model = spelt_out("(x*e)*h").model(opset=17)
    assert [operator.builtin for operator in file_of(model).operators] == ["GELU"]
    (actual,) = run_tflite(lowered(model), {"x": X}).values()
    expected = [0.5 * x * (1 + math.erf(x / SQRT_2)) for x in X.ravel().tolist()]
    np.testing.assert_allclose(actual.ravel(), expected, rtol=1e-5, atol=1e-6)
