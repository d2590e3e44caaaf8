"""Which interpreter a bundle's test takes of a runtime that is there in name."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

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
