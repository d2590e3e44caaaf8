"""Clean graphs answer as before, with one operator for what one kernel computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tflite_graphs import GraphWriter
from tflite_runtimes import random_feeds

from edgeopt.cleaning import clean


def cleaned(model: onnx.ModelProto) -> list[str]:
    """Clean a copy, compare answers under the outputs' own names, and return the operators that are left."""
    graph = ir.from_proto(model)
    clean(graph)
    answers = []
    for content in (model.SerializeToString(), ir.to_proto(graph).SerializeToString()):
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        answers.append(session.run([output.name for output in model.graph.output], random_feeds(model)))
    for before, after in zip(*answers, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return [node.op_type for node in graph.graph]


def convolved(write: GraphWriter) -> str:
    weight = write.constant(write.random.standard_normal((6, 3, 3, 3)).astype(np.float32))
    return write.node("Conv", write.input("x", (1, 3, 8, 8)), weight)


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize("is_first", [True, False])
def test_clean_gives_a_convolution_its_bias_when_a_constant_is_added_to_each_channel(shape, is_first):
    write = GraphWriter()
    operands = [convolved(write), write.constant(np.arange(6, dtype=np.float32).reshape(shape))]
    write.output(write.node("Add", *(operands[::-1] if is_first else operands), name="y"))
    assert cleaned(write.model()) == ["Conv"]


@pytest.mark.parametrize("shape", [(6,), (6, 6), (1, 1, 6, 1), (6, 6, 1), (2, 6, 1, 1), (1, 1, 6, 1, 1)])
def test_clean_leaves_an_addition_when_it_is_not_one_number_a_channel(shape):
    write = GraphWriter()
    constant = write.constant(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    write.output(write.node("Add", convolved(write), constant, name="y"))
    assert cleaned(write.model()) == ["Conv", "Add"]


def test_clean_leaves_an_addition_when_someone_else_reads_the_convolution():
    write = GraphWriter()
    result = convolved(write)
    write.output(write.node("Add", result, write.constant(np.ones((6, 1, 1), np.float32)), name="y"))
    write.output(result)
    assert cleaned(write.model()) == ["Conv", "Add"]


def test_clean_makes_a_gemm_when_a_constant_is_added_to_a_product():
    write = GraphWriter()
    weight, bias = (write.constant(write.random.standard_normal(shape).astype(np.float32)) for shape in ((8, 6), (6,)))
    write.output(write.node("Add", write.node("MatMul", write.input("x", (1, 8)), weight), bias, name="y"))
    assert cleaned(write.model()) == ["Gemm"]
