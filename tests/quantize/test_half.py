"""float16: weights in half their bytes, on a target that unpacks them and on one that computes in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ai_edge_litert.interpreter import Interpreter
from float_graphs import answers, node, write_graph
from onnx import TensorProto

from edgeopt.artifacts import FloatModel, Ranges
from edgeopt.errors import QuantizationError, RecipeError
from edgeopt.quantize.qdq import quantize
from edgeopt.quantize.scheme import ASYMMETRIC
from edgeopt.settings import QuantizeSettings
from edgeopt.targets.cuda.half import in_half_precision
from edgeopt.tflite.lower import lower

HALF = QuantizeSettings(precision="float16")
RANDOM = np.random.default_rng(7)
W = {
    "w": RANDOM.normal(0, 0.3, (32, 3, 3, 3)).astype(np.float32),
    "b": RANDOM.normal(0, 0.3, 32).astype(np.float32),
    "v": RANDOM.normal(0, 0.3, (8, 32, 1, 1)).astype(np.float32),
}
NODES = [node("Conv", "x w b", "a", pads=[1] * 4), node("Relu", "a", "r"), node("Conv", "r v", "y")]
X = RANDOM.uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32)


def halved(folder: Path, **weights: np.ndarray) -> tuple[FloatModel, onnx.ModelProto]:
    source = write_graph(folder, NODES, W | weights)
    return source, onnx.load(str(quantize(source, Ranges(source.path, {}, 1), ASYMMETRIC, HALF, folder).path))


def test_quantize_stores_large_weights_as_float16_when_it_is_asked(tmp_path: Path) -> None:
    source, model = halved(tmp_path)
    onnx.checker.check_model(model, full_check=True)
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored == {"b": TensorProto.FLOAT, "w.half": TensorProto.FLOAT16, "v.half": TensorProto.FLOAT16}
    (expected,) = answers(onnx.load(str(source.path)), X)
    (actual,) = answers(model, X)
    assert 0 < np.abs(actual - expected).max() < 2e-3 * np.abs(expected).max()


def test_lower_keeps_float16_in_the_file_when_the_graph_has_it(tmp_path: Path) -> None:
    source, model = halved(tmp_path)
    file, whole = lower(ir.from_proto(model)), lower(ir.load(source.path))
    saved = 2 * (W["w"].size + W["v"].size)
    assert saved * 0.6 < len(whole) - len(file) <= saved
    (actual,) = Interpreter(model_content=file, num_threads=1).get_signature_runner()(x=X).values()
    (expected,) = answers(model, X)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_in_half_precision_computes_in_float16_when_run(tmp_path: Path) -> None:
    _, model = halved(tmp_path)
    half = in_half_precision(model)
    onnx.checker.check_model(half, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(half).graph.value_info
    inside = {value.type.tensor_type.elem_type for value in inferred if value.name in ("a", "r")}
    assert inside == {TensorProto.FLOAT16}
    assert [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)] == [1, 1]
    (actual,) = answers(half, X)
    (expected,) = answers(model, X)
    assert 0 < np.abs(actual - expected).max() < 5e-3 * np.abs(expected).max()


def test_quantize_names_the_constant_when_float16_cannot_hold_it(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="constant 'w' reaches 1e\\+06, float16 ends at 65,504"):
        halved(tmp_path, w=W["w"] + np.float32(1e6))


def test_settings_refuse_float16_when_nodes_are_named() -> None:
    with pytest.raises(RecipeError, match="'float16' is a precision of the whole network"):
        QuantizeSettings(precision="float16", nodes={"a": "float"})
