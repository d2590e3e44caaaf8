"""How much RAM TFLite Micro needs for a model's tensors: its arena, by trying it out."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import LoweringError, MissingDependencyError
from edgeopt.native_stderr import held_back_stderr

_STEP_BYTES = 16  # what an arena is aligned to
_LARGEST_BYTES = 64 << 20  # no microcontroller has more

_TRY_SIZES = """
import sys
from tflite_micro import runtime

content = open(sys.argv[1], "rb").read()
for line in sys.stdin:
    try:
        runtime.Interpreter.from_bytes(content, arena_size=int(line))
        print("fits", flush=True)
    except RuntimeError:
        print("too small", flush=True)
"""


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
    with tempfile.TemporaryDirectory() as folder, _Probe(Path(folder), content) as probe:
        while enough - too_small > _STEP_BYTES:
            middle = (too_small + enough) // 2 // _STEP_BYTES * _STEP_BYTES
            if probe.fits(middle):
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


class _Probe:
    """Opens a model in arenas of other sizes, in a process of its own.

    In too small an arena the interpreter may crash: it does not look whether it got the memory for the scales of a
    fully connected layer's channels.
    """

    def __init__(self, folder: Path, content: bytes) -> None:
        self._path = folder / "model.tflite"
        self._path.write_bytes(content)
        self._process = self._started()

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def fits(self, arena_bytes: int) -> bool:
        """Return whether the interpreter opens the model in so many bytes."""
        ends = self._process.stdin, self._process.stdout
        assert ends[0] is not None
        assert ends[1] is not None
        ends[0].write(f"{arena_bytes}\n")
        ends[0].flush()
        answer = ends[1].readline()
        if not answer:  # it crashed
            self._end()
            self._process = self._started()
        return answer == "fits\n"

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _TRY_SIZES, str(self._path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def _end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def _open(content: bytes, arena_bytes: int) -> Any:
    try:
        from tflite_micro import runtime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the arena is measured with tflite-micro, which is not installed: {error}",
            hint="pip install 'edgeopt[mcu]'; the package exists for x86-64 Linux",
        ) from error
    return runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)
