"""The int8 files in runtimes with other kernels: tflite-runtime 2.14 takes all of them, tflite-micro the small ones.

Neither runtime's kernels are XNNPACK's, and both round in other places. In a network with random weights a difference
of one step grows from layer to layer, so what is judged of tflite-runtime is that it answers, and how near: the root
mean square of the difference from XNNPACK over that of the answers. tflite-micro is compared with LiteRT's reference
kernels, which it shares, bit for bit.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from architectures import ARCHITECTURES, MICROCONTROLLER, RECURRENT, TRANSFORMERS
from judging import Judged
from real_networks import NETWORKS

from edgeopt.tflite.inspect import read_tflite

pytestmark = [
    pytest.mark.slow,
    # What torch and transformers say about themselves while they export.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

CONVOLUTIONAL = [name for name in ARCHITECTURES if name not in TRANSFORMERS | RECURRENT]
TRAINED = [name for name in NETWORKS if name != "MiniLM"]
MAX_RELATIVE_ERROR = {"trained": 0.25, "random": 0.5}  # measured: at most 0.17, and 0.40

# tflite-micro rounds per-channel products of FULLY_CONNECTED twice, the reference kernel once: one step at a tie.
MAX_STEPS_BEHIND_FULLY_CONNECTED = 1

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Elsewhere:
    """A Python environment with one runtime in it."""

    runtime: str
    python: Path
    folder: Path

    def run(self, content: bytes, inputs: Arrays) -> tuple[Arrays, str]:
        """Return the outputs for the samples, and what the runtime wrote on stderr."""
        model, given, answers = (self.folder / name for name in ("model.tflite", "given.npz", "answers.npz"))
        model.write_bytes(content)
        answers.unlink(missing_ok=True)
        np.savez(given, **{str(index): array for index, array in enumerate(inputs)})
        script = Path(__file__).with_name("run_elsewhere.py")
        done = subprocess.run(
            [self.python, script, self.runtime, model, given, answers], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{self.runtime} ended with {done.returncode}: {done.stderr}"
        with np.load(answers) as arrays:
            return [arrays[str(index)] for index in range(len(arrays.files))], done.stderr


def environment(folder: Path, runtime: str, python: str, *requirements: str) -> Elsewhere:
    """Make an environment for one runtime; what cannot be installed is a failure."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    inside = folder / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(inside), "install", "--quiet", *requirements]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{runtime} could not be installed: {done.stderr}")
    return Elsewhere(runtime, inside, folder)


@pytest.fixture(scope="module")
def tflite_runtime(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """An environment with the last tflite-runtime, which needs Python 3.11 or older and NumPy 1."""
    python = sys.executable if sys.version_info < (3, 12) else shutil.which("python3.11")
    if python is None:
        pytest.fail("tflite-runtime 2.14 needs a python3.11 on PATH")
    folder = tmp_path_factory.mktemp("tflite_runtime") / "environment"
    return environment(folder, "tflite-runtime", python, "tflite-runtime==2.14.0", "numpy<2")


@pytest.fixture(scope="module")
def tflite_micro(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """An environment with the interpreter of TensorFlow Lite for Microcontrollers."""
    folder = tmp_path_factory.mktemp("tflite_micro") / "environment"
    return environment(folder, "tflite-micro", sys.executable, "tflite-micro")


@dataclass(frozen=True)
class Difference:
    """How far two runtimes' answers are apart, over all outputs."""

    equal_share: float
    worst_steps: int
    relative_error: float

    def __str__(self) -> str:
        return f"{self.equal_share:8.2%} {self.worst_steps:4} {self.relative_error:9.1e}"


def run_litert(content: bytes, inputs: Arrays, kernels: OpResolverType = OpResolverType.AUTO) -> Arrays:
    interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=kernels)
    for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape[1:])
    interpreter.allocate_tensors()
    answers = []
    for sample in zip(*inputs, strict=True):
        for detail, array in zip(interpreter.get_input_details(), sample, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        answers.append([interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()])
    return [np.stack(arrays) for arrays in zip(*answers, strict=True)]


def difference(content: bytes, reference: Arrays, actual: Arrays) -> Difference:
    """Compare answers; the step of a float output is a 255th of its range."""
    steps, errors = [], []
    for tensor, wanted, got in zip(read_tflite(content).outputs.values(), reference, actual, strict=True):
        assert got.shape == wanted.shape
        assert np.isfinite(got).all()
        assert len(np.unique(got)) > 1, "a constant answer proves nothing"
        zero_point = tensor.zero_points[0] if tensor.zero_points else 0
        apart = np.abs(wanted.astype(np.float64) - got.astype(np.float64))
        errors.append(np.sqrt(np.mean(apart**2) / np.mean((wanted.astype(np.float64) - zero_point) ** 2)))
        steps.append(np.rint(apart / (1 if tensor.zero_points else float(np.ptp(wanted)) / 255)).ravel())
    everything = np.concatenate(steps)
    return Difference(float((everything == 0).mean()), int(everything.max()), float(max(errors)))


@pytest.fixture(scope="module")
def facts_of(judged_architecture: Judged, judged_network: Judged) -> Judged:
    return lambda name: (judged_architecture if name in ARCHITECTURES else judged_network)(name)


@pytest.fixture(scope="module")
def in_tflite_runtime(tflite_runtime: Elsewhere, facts_of: Judged) -> Callable[[str], Difference]:
    @cache
    def compare(name: str) -> Difference:
        facts = facts_of(name)
        actual, _ = tflite_runtime.run(facts.int8_file, facts.stored_inputs)
        return difference(facts.int8_file, run_litert(facts.int8_file, facts.stored_inputs), actual)

    return compare


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *TRAINED])
def test_tflite_runtime_answers_near_xnnpack_when_network_is_convolutional(
    name: str, in_tflite_runtime: Callable[[str], Difference]
) -> None:
    limit = MAX_RELATIVE_ERROR["trained" if name in TRAINED else "random"]
    assert in_tflite_runtime(name).relative_error < limit


def test_tflite_runtime_table_is_complete_when_printed(
    in_tflite_runtime: Callable[[str], Difference], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{name:22} {in_tflite_runtime(name)}" for name in (*CONVOLUTIONAL, *TRAINED)]
    with capsys.disabled():
        print(f"\n{'in tflite-runtime 2.14':22} {'equal':>8} {'steps':>4} {'error':>9}", *rows, sep="\n")
        print(f"{len(rows)} int8 files loaded and run")
    assert len(rows) >= 25


@pytest.mark.parametrize("name", sorted(MICROCONTROLLER))
def test_tflite_micro_answers_as_reference_kernels_when_network_is_small(
    name: str, tflite_micro: Elsewhere, judged_architecture: Judged, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = judged_architecture(name)
    actual, stderr = tflite_micro.run(facts.int8_file, facts.stored_inputs)
    reference = run_litert(facts.int8_file, facts.stored_inputs, OpResolverType.BUILTIN_REF)
    found = difference(facts.int8_file, reference, actual)
    arena = re.search(r"Arena allocation total (\d+)", stderr)
    assert arena is not None, stderr
    with capsys.disabled():
        print(f"\n{name}: {len(facts.int8_file):,} bytes of model, {int(arena[1]):,} bytes of arena; {found}")
    last = read_tflite(facts.int8_file).operators[-1].builtin
    assert found.worst_steps <= (MAX_STEPS_BEHIND_FULLY_CONNECTED if last == "FULLY_CONNECTED" else 0)
