#!/usr/bin/env python3
"""Run one inference of each model between two marks, for ``count_instructions.c``. It runs on the emulated CPU.

    python marked_inference.py ai_edge_litert a.tflite b.tflite ...

A mark is a call of getpriority, which the plugin sees. The first pair of marks stands around a call that does nothing,
so that what Python takes for a call can be taken off. Inputs are all zero, and there is one thread.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

# Python 3.11 rewrites its bytecode for what it has seen; after so many calls it has done so.
_CALLS_UNTIL_SETTLED = 32


def run_between(mark: Callable[[int, int], int], call: Callable[[], object]) -> None:
    """Make one call between two marks."""
    mark(os.PRIO_PROCESS, 0)
    call()
    mark(os.PRIO_PROCESS, 0)


def load(interpreter_class: Any, path: str) -> Any:
    """Return an interpreter whose inputs are zero and whose kernels are set up, which the first inference does."""
    interpreter = interpreter_class(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    for facts in interpreter.get_input_details():
        interpreter.set_tensor(facts["index"], np.zeros(facts["shape"], facts["dtype"]))
    interpreter.invoke()
    return interpreter


def main(runtime: str, models: list[str]) -> None:
    """Mark a call of nothing, then an inference of each model."""
    interpreter_class = importlib.import_module(runtime + ".interpreter").Interpreter
    interpreter = load(interpreter_class, models[0])
    for _ in range(_CALLS_UNTIL_SETTLED):
        run_between(max, interpreter._interpreter.NumNodes)
    run_between(os.getpriority, interpreter._interpreter.NumNodes)
    run_between(os.getpriority, interpreter._interpreter.Invoke)
    for model in models[1:]:
        run_between(os.getpriority, load(interpreter_class, model)._interpreter.Invoke)


if __name__ == "__main__":
    gc.disable()
    main(sys.argv[1], sys.argv[2:])
