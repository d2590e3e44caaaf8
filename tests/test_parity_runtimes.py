"""Which interpreter a bundle's test takes of a runtime that is there in name."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest

from edgeopt.conversion import convert
from edgeopt.parity import RuntimeMissing, open_model


def test_open_model_says_so_when_tensorflow_has_no_interpreter_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for tensorflow in (ModuleType("tensorflow"), SimpleNamespace(lite=SimpleNamespace())):
        monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
        with pytest.raises(RuntimeMissing, match=r"pip install tensorflow==2\.21"):
            open_model("model.tflite", "tensorflow")


def test_open_model_takes_the_interpreter_of_the_runtime_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Interpreter:
        def __init__(self, *, model_path: str, num_threads: int) -> None:
            asked.append((model_path, num_threads))

        def allocate_tensors(self) -> None:
            pass

        def get_signature_runner(self) -> object:
            return lambda image: {"logits": image}

    board, desk = ModuleType("tflite_runtime.interpreter"), ModuleType("tensorflow")
    board.Interpreter = desk.lite = Interpreter
    Interpreter.Interpreter = Interpreter
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", board)
    monkeypatch.setitem(sys.modules, "tensorflow", desk)
    open_model("a.tflite", "tflite-runtime", threads=2)
    open_model("b.tflite", "tensorflow")
    assert asked == [("a.tflite", 2), ("b.tflite", 1)]


GRAPHS = {
    "float[2, 3] y) { y = Relu(x) }": "XNNPACK",
    "int64[2] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }": "built-in",
    "float[2, 3] y) { i = ArgMax<axis = 1>(x) f = Cast<to = 1>(i) n = Neg(x) y = Add(n, f) }": (
        "XNNPACK, built-in for ARG_MAX CAST RESHAPE"
    ),
}


@pytest.mark.parametrize(("graph", "kernels"), GRAPHS.items())
def test_kernels_are_found_out_when_the_delegate_takes_all_none_or_some(
    graph: str, kernels: str, tmp_path: Path
) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[2, 3] x) => ({graph}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "graph.onnx")
    convert(tmp_path / "graph.onnx", tmp_path / "graph.tflite")
    model = open_model(str(tmp_path / "graph.tflite"), "ai-edge-litert")
    assert model.kernels == kernels
    assert list(model({"x": np.zeros((2, 3), np.float32)})) == ["y"]


def test_kernels_of_onnx_runtime_are_those_of_its_provider(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "graph.onnx")
    assert open_model(str(tmp_path / "graph.onnx"), "onnxruntime").kernels == "ONNX Runtime CPUExecutionProvider"
