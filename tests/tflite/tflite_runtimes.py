"""Run a graph in ONNX Runtime and a lowered file in LiteRT, and compare their answers in steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, numpy_helper

from edgeopt.tflite.inspect import TfliteFile, read_tflite
from edgeopt.tflite.lower import lower

Feeds = Mapping[str, np.ndarray]


def lowered(model: onnx.ModelProto, **options: Any) -> bytes:
    return lower(ir.from_proto(model), **options)


def file_of(model: onnx.ModelProto, **options: Any) -> TfliteFile:
    return read_tflite(lowered(model, **options))


def random_feeds(model: onnx.ModelProto, seed: int = 0, low: float = -3.0, high: float = 3.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = random.uniform(low, high, shape).astype(np.float32)
    return feeds


def run_onnx(model: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run in ONNX Runtime with its default optimizations, with uint8 activations as its x86 kernels want them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        unsigned(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_tflite(content: bytes, feeds: Feeds, **options: Any) -> dict[str, np.ndarray]:
    """Run once in LiteRT with XNNPACK."""
    return open_tflite(content, **options)(feeds)


def open_tflite(content: bytes, **options: Any) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """Load a file in LiteRT with XNNPACK; int8 borders are quantized and dequantized here, in float32."""
    interpreter = Interpreter(model_content=content, num_threads=1, **options)
    runner = interpreter.get_signature_runner()

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        answers = runner(**{name: _quantize(array, inputs[name]) for name, array in feeds.items()})
        return {name: _dequantize(array, outputs[name]) for name, array in answers.items()}

    return run


def steps_apart(model: onnx.ModelProto, content: bytes, feeds: Feeds, scale: float) -> np.ndarray:
    """Return how many steps of ``scale`` the runtimes' answers to the one output are apart, element by element."""
    (reference,) = run_onnx(model, feeds).values()
    (actual,) = run_tflite(content, feeds).values()
    assert reference.shape == actual.shape
    assert reference.size > 0
    assert len(np.unique(reference)) > 1, "a constant answer proves nothing"
    return np.abs(np.rint((reference - actual) / np.float32(scale)))


def unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph with uint8 activations: zero_point + 128; weights stay int8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    initializers = {tensor.name: tensor for tensor in copy.graph.initializer}
    made = {node.output[0] for node in copy.graph.node}
    for node in copy.graph.node:
        if len(node.input) < 3:
            continue
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in made):
            point = initializers[node.input[2]]
            if point.data_type == TensorProto.INT8:
                shifted = numpy_helper.to_array(point).astype(np.int16) + 128
                point.CopyFrom(numpy_helper.from_array(shifted.astype(np.uint8), point.name))
    return copy


def _quantize(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if detail["dtype"] != np.int8:
        return array
    return np.clip(np.rint(array / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def _dequantize(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if detail["dtype"] != np.int8:
        return array
    return (array.astype(np.float32) - zero_point) * np.float32(scale)
