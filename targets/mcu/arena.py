"""How much RAM TFLite Micro needs for a model's tensors: its arena, by trying it out."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeopt.errors import LoweringError, MissingDependencyError
from edgeopt.native_stderr import held_back_stderr

_STEP_BYTES = 16  # what an arena is aligned to
_LARGEST_BYTES = 64 << 20  # no microcontroller has more


def smallest_arena(content: bytes, num_inputs: int) -> int:
    """Return the bytes of the smallest arena in which the interpreter runs a model, a multiple of 16.

    Found by bisection: the interpreter's own record, which it can only print, leaves out what it needs for a moment
    while it starts. Its bookkeeping has pointers of this machine, 8 bytes: a chip with 32 bits needs a little less.
    Kernels for one chip may ask for scratch memory of their own.

    Args:
        content: the bytes of a .tflite file.
        num_inputs: how many inputs it has.

    Raises:
        MissingDependencyError: tflite-micro is not installed.
        LoweringError: the interpreter does not run the model in any arena; its own words are in the message.
    """
    _run(content, num_inputs, _LARGEST_BYTES)
    too_small, enough = 0, _LARGEST_BYTES
    while enough - too_small > _STEP_BYTES:
        middle = (too_small + enough) // 2 // _STEP_BYTES * _STEP_BYTES
        if _fits(content, middle):
            enough = middle
        else:
            too_small = middle
    _run(content, num_inputs, enough)
    return enough


def _run(content: bytes, num_inputs: int, arena_bytes: int) -> None:
    """Run one inference on zeros."""
    try:
        with held_back_stderr() as words:
            interpreter = _open(content, arena_bytes)
            for index in range(num_inputs):
                facts = interpreter.get_input_details(index)
                interpreter.set_input(np.zeros(facts["shape"], facts["dtype"]), index)
            interpreter.invoke()
    except RuntimeError as error:
        said = "; ".join(line.decode(errors="replace").strip() for line in words if line.strip()) or str(error)
        raise LoweringError(f"TFLite Micro does not run this network: {said}") from error


def _fits(content: bytes, arena_bytes: int) -> bool:
    try:
        with held_back_stderr():
            _open(content, arena_bytes)
    except RuntimeError:
        return False
    return True


def _open(content: bytes, arena_bytes: int) -> Any:
    try:
        from tflite_micro import runtime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the arena is measured with tflite-micro, which is not installed: {error}",
            hint="pip install 'edgeopt[mcu]'; the package exists for x86-64 Linux",
        ) from error
    return runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)
