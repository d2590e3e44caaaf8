"""The verdict: metrics by hand, and every limit broken once."""

import ast
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import parity
from edgeopt.parity import BundleDamaged, RuntimeMissing, cosine, find_runtime, judge, sqnr_db, to_real, to_steps

FACTS = {"name": "y", "scale": 0.5, "zero_point": 3, "integer_dtype": "int8", "dtype": "int8"}


@pytest.mark.parametrize(
    ("reference", "actual", "expected"),
    [
        ([3, 4], [3, 4.5], 20.0),  # 25 / 0.25
        ([1, 0], [0, 0], 0.0),
        ([1, 2], [1, 2], 200.0),
        ([0, 0], [0, 0], 200.0),
        ([0, 0], [1, 0], -200.0),
        ([1e-30, 0], [1e300, 0], -200.0),
        ([1, np.nan], [1, 1], math.nan),
        ([1, 1], [1, np.nan], math.nan),
        ([1, 1], [1, np.inf], math.nan),
        ([1, np.inf], [1, np.inf], math.nan),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_sqnr_db_is_what_is_worked_out_by_hand_when(reference: list, actual: list, expected: float) -> None:
    assert sqnr_db(reference, actual) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("reference", "actual", "expected"),
    [
        ([3, 4], [4, 3], 0.96),
        ([1, 0], [0, 1], 0.0),
        ([1, 2], [-2, -4], -1.0),
        ([0, 0], [0, 0], 1.0),
        ([0, 0], [1, 0], 0.0),
        ([1, 0], [0, 0], 0.0),
        ([1, np.nan], [1, 1], math.nan),
        ([0, 0], [0, np.nan], math.nan),
        ([1, 1], [np.inf, 1], math.nan),
    ],
)
def test_cosine_is_what_is_worked_out_by_hand_when(reference: list, actual: list, expected: float) -> None:
    assert cosine(reference, actual) == pytest.approx(expected, nan_ok=True)


def test_to_steps_and_to_real_agree_when_an_output_is_integer_or_stands_for_one() -> None:
    integers, floats = np.array([3, 5, -1], np.int8), np.array([0.0, 1.0, -2.0], np.float32)
    assert to_steps(integers, FACTS).tolist() == to_steps(floats, FACTS).tolist() == [3, 5, -1]
    assert to_real(integers, FACTS).tolist() == to_real(floats, FACTS).tolist() == [0.0, 1.0, -2.0]
    assert to_steps(np.array([0.75], np.float32), {**FACTS, "integer_dtype": None}).tolist() == [1.5]


# ---------------------------------------------------------------- the verdict

LIMITS = {"max_steps": 1, "min_sqnr_db": 20.0, "min_cosine": 0.99, "min_top1_agreement": 0.75}
CLASSES = np.array([[0, 10, 2, 0], [10, 0, 2, 0], [0, 0, 2, 10], [0, 10, 2, 0]], np.int8)


def manifest(coverage: float = 1.0, **limits: float) -> dict[str, Any]:
    facts = {"name": "y", "dtype": "int8", "scale": 1.0, "zero_point": 0, "integer_dtype": "int8"}
    return {
        "inputs": [{"name": "x", "dtype": "int8", "scale": 1.0, "zero_point": 0}],
        "outputs": [facts],
        "limits": {**LIMITS, "min_integer_coverage": 0.9, **limits},
        "integer_coverage": coverage,
    }


def golden(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "names": np.array(["a", "b", "c", "d"]),
        "labels": np.array([1, 0, 3, 0]),
        "input/x": CLASSES,
        "quantized/y": CLASSES,
        "float/y": CLASSES.astype(np.float32),
        **arrays,
    }


def changed(row: int, column: int, value: float, dtype: str = "int8") -> np.ndarray:
    array = CLASSES.astype(dtype)
    array[row, column] = value
    return array


def verdict(answers: np.ndarray, runtime: str = "onnxruntime", facts: dict | None = None, **arrays: np.ndarray) -> dict:
    rows = iter(answers)
    return judge(lambda inputs: {"y": next(rows)[None]}, golden(**arrays), facts or manifest(), runtime)


def test_judge_says_yes_with_every_figure_when_answers_are_equal() -> None:
    report = verdict(CLASSES)
    assert (report["passed"], report["failures"], report["num_samples"]) == (True, [], 4)
    (output,) = report["outputs"]
    assert (output["max_steps"], output["equal_fraction"], output["sqnr_db"], output["cosine"]) == (0, 1.0, 200.0, 1.0)
    assert (output["top1_agreement"], output["accuracy"], output["float_accuracy"]) == (1.0, 0.75, 0.75)


BROKEN = {
    "steps": (changed(2, 1, 2), {"min_sqnr_db": 0, "min_cosine": 0}, r"y: 2 steps .*on sample c, limit 1"),
    "sqnr": (changed(1, 3, 1), {"min_sqnr_db": 30.0}, r"y: 20\.2 dB to the float network on sample b, limit 30\.0"),
    "cosine": (changed(3, 0, 1), {"min_cosine": 0.999, "min_sqnr_db": 0}, r"y: cosine 0\.9952 .*on sample d, limit"),
    "class": (
        np.roll(CLASSES, 1, axis=0),
        {"max_steps": 99, "min_sqnr_db": -99.0, "min_cosine": -1},
        r"same class as the float network on 25\.0% of the samples, limit 75\.0%",
    ),
}


@pytest.mark.parametrize("limit", BROKEN)
def test_judge_says_no_and_names_the_worst_sample_when_one_limit_is_broken(limit: str) -> None:
    answers, limits, message = BROKEN[limit]
    report = verdict(answers, facts=manifest(**limits))
    assert not report["passed"]
    assert len(report["failures"]) == 1
    assert re.search(message, report["failures"][0]), report["failures"]


def test_judge_says_yes_when_every_figure_is_at_its_limit() -> None:
    report = verdict(changed(0, 3, 1), facts=manifest(max_steps=1, min_sqnr_db=20.0, min_cosine=0.995))
    assert report["passed"], report["failures"]


def test_judge_says_no_when_integer_coverage_is_too_small() -> None:
    report = verdict(CLASSES, facts=manifest(coverage=0.89))
    assert report["failures"] == ["89.0% of the multiplications run on integers, limit 90.0%"]
    assert not verdict(CLASSES, facts=manifest(coverage=math.nan))["passed"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 2])
def test_judge_says_no_and_names_the_sample_when_an_answer_is_not_finite(value: float, row: int) -> None:
    facts = manifest()
    facts["outputs"][0].update(integer_dtype=None, dtype="float32")
    answers = CLASSES.astype(np.float32)
    report = verdict(changed(row, 1, value, "float32"), facts=facts, **{"quantized/y": answers})
    assert report["failures"] == [f"y: NaN or infinite on sample {'abcd'[row]}"]
    json.dumps(report, allow_nan=False)


def test_judge_shows_steps_without_judging_when_kernels_are_others() -> None:
    report = verdict(changed(2, 1, 2), "tflite-runtime", manifest(min_sqnr_db=0, min_cosine=0))
    assert (report["passed"], report["steps_judged"], report["outputs"][0]["max_steps"]) == (True, False, 2)


@pytest.mark.parametrize(("machine", "failures"), [("x86_64", 0), ("aarch64", 1)])
def test_judge_compares_built_in_kernels_with_their_own_answers_when_the_cpu_rounds_so(
    monkeypatch: pytest.MonkeyPatch, machine: str, failures: int
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    facts = manifest(max_built_in_steps=1, min_sqnr_db=0, min_cosine=0)
    near = {"built_in/y": changed(2, 1, 1)[:3]}
    assert verdict(changed(2, 1, 2), "tflite-runtime", facts, **near)["failures"] == []
    far = {"built_in/y": changed(2, 1, 0)[:3]}
    report = verdict(changed(2, 1, 2), "tflite-runtime", facts, **far)
    assert report["failures"] == ["y: 2 steps from TFLite's built-in kernels, limit 1"] * failures
    assert report["outputs"][0].get("built_in_steps") == (2 if failures else None)


def test_judge_refuses_when_there_are_no_samples() -> None:
    with pytest.raises(BundleDamaged, match="a verdict on nothing would be a yes"):
        judge(lambda inputs: {}, golden(names=np.array([], str)), manifest(), "onnxruntime")


def test_feed_gives_the_real_numbers_when_the_input_stays_float() -> None:
    facts = {"inputs": [{"name": "x", "dtype": "float32", "scale": 0.5, "zero_point": 3}]}
    fed = parity.feed({"input/x": np.array([[3, 5], [1, 3]], np.int8)}, facts, 1)["x"]
    assert (fed.dtype, fed.tolist()) == (np.float32, [[-1.0, 0.0]])


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("onnx", "tensorflow", r"tensorflow cannot load a \.onnx model; choose from onnxruntime"),
        ("tflite", "onnxruntime", "choose from ai-edge-litert, tflite-runtime, tensorflow"),
        ("tflite", "tflite-runtime", "pip install tflite-runtime"),
    ],
)
def test_find_runtime_says_what_to_install_when_there_is_none(
    monkeypatch: pytest.MonkeyPatch, kind: str, wanted: str, message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=message):
        find_runtime(kind, wanted)


def test_run_parity_compiles_when_python_is_3_8(tmp_path: Path) -> None:
    ast.parse(Path(parity.__file__).read_text(), feature_version=(3, 8))
    python = shutil.which("python3.8")
    # A version manager leaves a name on the path that runs nothing.
    if python and subprocess.run([python, "--version"], capture_output=True, timeout=60).returncode == 0:
        target = tmp_path / "run_parity.py"
        target.write_bytes(Path(parity.__file__).read_bytes())
        subprocess.run([python, "-m", "py_compile", str(target)], check=True, timeout=60)


def test_parity_imports_nothing_of_edgeopt_when_it_is_a_script() -> None:
    listing = "print([name for name in sys.modules if name.split('.')[0] == 'edgeopt'])"
    code = f"import runpy, sys; runpy.run_path({parity.__file__!r}); {listing}"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
