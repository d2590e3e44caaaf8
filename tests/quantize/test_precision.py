"""Operators of 8 bits, of 16 bits and in float side by side, in the QDQ graph and in LiteRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ai_edge_litert.interpreter import Interpreter
from float_graphs import answers, constants_of, node, quantized, write_graph
from tiny_project import write_project

import edgeopt
from edgeopt.errors import RecipeError
from edgeopt.quantize.scheme import ASYMMETRIC, SYMMETRIC, Scheme
from edgeopt.tflite.lower import lower

W = {
    name: np.random.default_rng(seed).normal(0, 0.3, (3, 3, 1, 1)).astype(np.float32)
    for seed, name in enumerate(("w", "v", "u"))
}
CHAIN = [
    node("Conv", "x w", "a"),
    node("Relu", "a", "b"),
    node("Conv", "b v", "c"),
    node("MaxPool", "c", "d", kernel_shape=[2, 2]),
    node("Conv", "d u", "y"),
]


def pairs(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return the tensor and the dtype of each QuantizeLinear, in graph order."""
    constants = constants_of(model)
    quantizers = [item for item in model.graph.node if item.op_type == "QuantizeLinear"]
    return [(item.name.removesuffix(".quantize"), constants[item.input[2]].dtype.name) for item in quantizers]


def made(folder: Path, scheme: Scheme = ASYMMETRIC, **nodes: str) -> onnx.ModelProto:
    return quantized(write_graph(folder, CHAIN, W), {}, scheme, nodes=nodes)


def test_quantize_requantizes_between_8_and_16_bits_when_one_node_is_int16(tmp_path: Path) -> None:
    model = made(tmp_path, Conv_c="int16")
    assert pairs(model) == [
        ("x", "int8"), ("b", "int8"), ("b.int16", "int16"), ("c", "int16"), ("d", "int16"), ("d.int8", "int8"),
        ("y", "int8"),
    ]  # fmt: skip
    (second,) = [item for item in model.graph.node if item.name == "b.int16.quantize"]
    assert second.input[0] == "b.dequantized"  # what the operator of 8 bits wrote, not the float before it


def test_quantize_gives_16_bits_a_symmetric_scale_when_it_is_asked(tmp_path: Path) -> None:
    constants = constants_of(made(tmp_path, Conv_c="int16"))
    assert constants["c.scale"] == np.float32(1 / 32767)
    assert constants["c.zero_point"] == 0


def test_quantize_lets_a_node_that_moves_values_follow_when_it_is_not_named(tmp_path: Path) -> None:
    follows = dict(pairs(made(tmp_path, Conv_c="int16")))
    named = dict(pairs(made(tmp_path, Conv_c="int16", MaxPool_d="int8")))
    assert (follows["d"], named["d"]) == ("int16", "int8")
    assert named["c.int8"] == "int8"


@pytest.mark.parametrize("scheme", [ASYMMETRIC, SYMMETRIC])
def test_quantize_leaves_a_node_float_when_it_is_named(tmp_path: Path, scheme: Scheme) -> None:
    model = made(tmp_path, scheme, Conv_c="float")
    (float_conv,) = [item for item in model.graph.node if item.name == "Conv_c"]
    assert float_conv.input[1] == "v"


def test_litert_answers_within_a_step_when_precisions_are_mixed(tmp_path: Path) -> None:
    x = np.random.default_rng(3).uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32)
    for nodes in ({"Conv_c": "int16"}, {"Conv_a": "int16"}, {"Conv_c": "float"}):
        model = made(tmp_path, **nodes)
        (expected,) = answers(model, x)
        file = lower(ir.from_proto(model), input_layouts={}, output_layouts={})
        runner = Interpreter(model_content=file, num_threads=1).get_signature_runner()
        facts = runner.get_input_details()["x"]
        scale, zero_point = facts["quantization"]
        bounds = np.iinfo(facts["dtype"])
        steps = np.clip(np.rint(x / np.float32(scale)) + zero_point, bounds.min, bounds.max)
        given = steps.astype(facts["dtype"])
        (actual,) = runner(x=given).values()
        out_scale, out_zero = runner.get_output_details()["y"]["quantization"]
        real = (actual.astype(np.float32) - out_zero) * np.float32(out_scale)
        assert np.abs(real - expected).max() <= out_scale * 1.001, nodes
        assert len(np.unique(actual)) > 5


def test_build_refuses_a_precision_when_the_target_has_no_kernels_for_it(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    for overrides, key in (
        ({"quantize.precision": "int16"}, "precision"),
        ({"quantize.nodes.a": "int16"}, "nodes.'a'"),
    ):
        with pytest.raises(RecipeError, match=f"{key}: cuda has no kernels for 'int16', expected one of int8, float"):
            edgeopt.build(project / "edgeopt.toml", targets=["cuda"], out=tmp_path, overrides=overrides)
