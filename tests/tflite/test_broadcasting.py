"""Operators on more axes than the kernels broadcast over."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from tflite_graphs import GraphWriter
from tflite_runtimes import file_of, lowered, random_feeds, run_onnx, run_tflite, steps_apart

from edgeopt.errors import LoweringError
from edgeopt.tflite.broadcasting import merged_shapes


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((1, 3, 8, 8, 2), (1, 3, 1, 1, 2), [(3, 64, 2), (3, 1, 2), (3, 64, 2)]),
        ((1, 3, 8, 8, 2), (8, 8, 2), [(3, 128), (1, 128), (3, 128)]),
        ((2, 3, 4, 5, 6), (), [(720,), (1,), (720,)]),
        ((2, 1, 4, 1, 6), (1, 3, 1, 5, 1), [(2, 1, 4, 1, 6), (1, 3, 1, 5, 1), (2, 3, 4, 5, 6)]),
        ((-1, 3, 8, 8, 2), (8, 8, 2), [(-1, 128), (1, 128), (-1, 128)]),
        ((-1, 3, 8, 8, 2), (-1, 1, 8, 8, 2), [(-1, 3, 128), (-1, 1, 128), (-1, 3, 128)]),
        ((-1, 3, 8, 8, 2), (-1, 3, 1, 1, 2), [(-1, 3, 64, 2), (-1, 3, 1, 2), (-1, 3, 64, 2)]),
    ],
)
def test_merged_shapes_join_neighbours_when_they_broadcast_alike(left, right, expected):
    rank = max(len(left), len(right))
    padded = [(1,) * (rank - len(shape)) + shape for shape in (left, right)]
    output = tuple(a if a != 1 else b for a, b in zip(*padded, strict=True))
    assert merged_shapes([left, right, output]) == expected


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Max", "PRelu", "Pow", "Greater", "Mod"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 2), (4, 5, 2), (3, 1, 1, 1)])
def test_operator_equals_onnxruntime_when_it_broadcasts_over_five_axes(op_type, shape):
    write = GraphWriter()
    other = write.constant(write.random.uniform(0.5, 2, shape).astype(np.float32))
    flags = {"fmod": 1} if op_type == "Mod" else {}
    result = write.node(op_type, write.node("Abs", write.input("x", (1, 3, 4, 5, 2))), other, **flags)
    write.output(write.node("Cast", result, to=TensorProto.FLOAT) if op_type == "Greater" else result)
    model = write.model()
    feeds = random_feeds(model)
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    assert actual.shape == reference.shape
    np.testing.assert_allclose(actual, reference, rtol=1e-5, atol=1e-6)


def test_mul_runs_in_integers_when_it_broadcasts_over_five_axes():
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 3, 4, 5, 2)), 0.02, 3)
    other = write.quantized(write.input("other", (1, 3, 1, 1, 2)), 0.03, -7)
    write.output(write.quantized(write.node("Mul", x, other), 0.09, 5, name="y"))
    model = write.model()
    builtins = [operator.builtin for operator in file_of(model).operators]
    assert builtins == ["RESHAPE", "RESHAPE", "MUL", "RESHAPE"]
    assert steps_apart(model, lowered(model), random_feeds(model), 0.09).max() == 0


def test_add_is_refused_when_no_axes_can_be_merged():
    write = GraphWriter()
    write.output(write.node("Add", write.input("x", (2, 1, 4, 1, 6)), write.input("y", (1, 3, 1, 5, 1))))
    with pytest.raises(LoweringError, match="broadcasting over 5 axes, expected at most 4"):
        lowered(write.model())
