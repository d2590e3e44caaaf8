"""The debugger: every form of one small network against every other, and damage that must be found where it is."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from tiny_project import PREPROCESS, edgeopt_run, write_project

from edgeopt.diff.comparison import TensorDifference, compare
from edgeopt.diff.difference import Difference, diff
from edgeopt.diff.finding import first_under
from edgeopt.diff.network import Answers, in_network_order
from edgeopt.diff.tflite_network import TfliteNetwork
from edgeopt.errors import UsageError
from edgeopt.inspection import Place
from edgeopt.recipe import load_recipe
from edgeopt.samples import Sample

INSIDE = [
    "relu",
    "mean",
    "logits",
]  # the tensors that every form has: BatchNormalization is gone, Flatten moves nothing


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("diff") / "project")
    done = edgeopt_run(folder, "build", "--target", "arm64", "--target", "x86")
    assert done.returncode == 0, done.stderr
    return folder


def difference(project: Path, first: str, second: str, target: str = "arm64", **more: object) -> Difference:
    recipe = load_recipe(project / "edgeopt.toml")
    return diff(first, second, recipe=recipe, target=target, out=project / "build", **more)  # type: ignore[arg-type]


def decibels(found: Difference) -> dict[str, float]:
    return {tensor.name: tensor.sqnr_db for tensor in found.tensors}


def test_diff_finds_every_tensor_equal_when_the_export_is_right(project: Path) -> None:
    found = decibels(difference(project, "torch", "float"))
    assert {"getitem", *INSIDE} <= set(found)
    assert min(found.values()) > 100


def test_diff_shows_what_int8_costs_when_float_meets_the_quantized_graph(project: Path) -> None:
    found = decibels(difference(project, "float", "qdq"))
    assert list(found) == ["relu", "mean", "view", "logits"]  # in graph order
    assert all(15 < ratio < 60 for ratio in found.values())


@pytest.mark.parametrize("target", ["arm64", "x86"])
def test_diff_finds_the_lowered_file_equal_when_it_is_right(project: Path, target: str) -> None:
    found = decibels(difference(project, "qdq", "bundle", target))
    assert set(INSIDE) <= set(found)
    assert set(found.values()) == {200.0}
    assert decibels(difference(project, "qdq", str(project / "build" / "edgeopt" / target), target)) == found


def test_diff_takes_one_sample_when_it_is_named(project: Path) -> None:
    assert difference(project, "float", "qdq", only=("held_out/3",)).samples == ("held_out/3",)
    with pytest.raises(UsageError, match="there is no sample 'held_out/9' among the first 8 of held_out"):
        difference(project, "float", "qdq", only=("held_out/9",))


def test_diff_asks_did_you_mean_when_a_form_is_unknown(project: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)'bundel' is no form of a network.*did you mean 'bundle'"):
        difference(project, "float", "bundel")


def test_diff_blames_the_first_tensor_when_calibration_was_too_dark(tmp_path: Path) -> None:
    folder = write_project(tmp_path / "project")
    dark = PREPROCESS.replace(
        "        return Sample(",
        '        image = image / 8 if self.split == "calibration" else image\n        return Sample(',
    )
    (folder / "noise" / "preprocess.py").write_text(dark)
    found = difference(folder, "float", "qdq")
    assert found.finding is not None
    assert found.finding.tensor.name == "relu"  # the first behind the input, which is what was clipped
    assert found.finding.tensor.node
    assert "are cut off at" in found.finding.advice[0]
    assert "calibrate on more samples" in found.finding.advice[0]


def test_edgeopt_diff_writes_json_and_a_picture_when_asked(project: Path) -> None:
    done = edgeopt_run(
        project, "diff", "float", "qdq", "--json", "-", "--plot", "diff.svg", "--min-sqnr", "90", "--check"
    )
    assert done.returncode == 12, done.stderr
    content = json.loads(done.stdout)
    assert content["finding"]["tensor"]["name"] == "relu"
    assert set(content["finding"]["tensor"]["tail"]) == {"median", "p99", "p999", "p9999", "maximum"}
    bars = ElementTree.parse(project / "diff.svg").getroot().findall("{http://www.w3.org/2000/svg}rect")
    assert [bar.get("fill") for bar in bars] == ["#c33", "#47a", "#47a", "#47a"]


def test_edgeopt_diff_prints_the_first_tensor_under_the_limit_when_there_is_one(project: Path) -> None:
    done = edgeopt_run(project, "diff", "float", "qdq", "--min-sqnr", "90")
    assert done.returncode == 0, done.stderr
    assert "first under 90 dB: relu, made by Relu" in done.stdout
    assert "mend: " in done.stdout


def test_watching_changes_no_answer_when_a_tflite_file_runs(project: Path) -> None:
    folder = project / "build" / "edgeopt" / "arm64"
    places = {
        name: Place(place["name"], tuple(place["order"]))
        for name, place in json.loads((folder / "bundle.json").read_text())["tensors"].items()
    }
    sample = Sample("s", {"image": np.random.default_rng(5).random((1, 3, 8, 8), dtype=np.float32)})
    network = TfliteNetwork("bundle", folder / "model.tflite", places)
    network.watch(["relu", "logits"])
    watched = network.answers(sample)["logits"]
    interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=1)
    runner = interpreter.get_signature_runner()
    scale, zero_point = runner.get_input_details()["image"]["quantization"]
    given = np.clip(np.rint(sample.inputs["image"] / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)
    out_scale, out_zero = runner.get_output_details()["logits"]["quantization"]
    plain = runner(image=given.transpose(0, 2, 3, 1))["logits"]
    np.testing.assert_array_equal(watched, (plain.astype(np.float32) - out_zero) * np.float32(out_scale))


# ---------------------------------------------------------------- comparison and finding, on numbers by hand


class Given:
    """A network whose tensors are given."""

    def __init__(self, title: str, values: Mapping[str, Sequence[float]]) -> None:
        self.title = title
        self._values = {name: np.array(value, np.float32) for name, value in values.items()}
        self.tensors = list(values)

    def watch(self, tensors: Sequence[str]) -> None:
        pass

    def answers(self, sample: Sample) -> Answers:
        return self._values


def compared(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> list[TensorDifference]:
    order = [(name, "Conv", f"node_{name}") for name in ("a", "b", "c")]
    return compare(Given("first", first), Given("second", second), [Sample("s", {})], order)


def test_compare_is_what_is_worked_out_by_hand_when_run() -> None:
    (found,) = compared({"a": [3, 4]}, {"a": [3, 4.5], "c": [1]})
    assert found.sqnr_db == pytest.approx(20.0)  # 25 / 0.25
    assert found.cosine == pytest.approx((9 + 18) / math.sqrt(25 * (9 + 20.25)))
    assert (found.max_error, found.mean_error) == (0.5, 0.25)
    assert (found.minimum, found.maximum, found.other_maximum) == (3, 4, 4.5)


def test_compare_gives_the_tail_when_few_values_are_large() -> None:
    values = np.concatenate([np.full(10000, 1.0), [100.0]])
    (found,) = compared({"a": values.tolist()}, {"a": values.tolist()})
    assert found.sqnr_db == 200
    assert found.tail.p999 == pytest.approx(1.0, rel=0.02)
    assert found.tail.maximum == 100


def test_first_under_names_the_tensor_when_one_is_nan() -> None:
    finding = first_under(compared({"a": [1, 2], "b": [1, 2]}, {"a": [1, 2], "b": [1, math.nan]}), 20)
    assert finding is not None
    assert finding.tensor.name == "b"
    assert finding.advice == ("a value is NaN or infinite on s: look at the network on that sample first",)
    json.dumps(finding.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("first", "second", "advice"),
    [
        ([-10.0, 10.0, 1.0], [-4.0, 4.0, 1.0], "are cut off at"),
        ([1.0] * 5000 + [50.0], [0.6, 1.4] * 2500 + [50.0], "one value in a thousand is above 1"),
        ([1.0, 2.0, 4.0], [1.8, 2.8, 4.8], "the error is one-sided, 0.8 on average of 0.8"),
    ],
)
def test_first_under_gives_the_advice_when_its_evidence_is_there(
    first: list[float], second: list[float], advice: str
) -> None:
    finding = first_under(compared({"a": first}, {"a": second}), 30)
    assert finding is not None
    assert any(advice in piece for piece in finding.advice), finding.advice


def test_first_under_tells_a_sudden_fall_from_errors_that_add_up_when_it_advises() -> None:
    clean, slight, bad = [1.0, -1.0], [1.0, -0.9], [1.0, -0.4]
    sudden = first_under(compared({"a": clean, "b": clean}, {"a": clean, "b": bad}), 20)
    slow = first_under(compared({"a": clean, "b": clean}, {"a": slight, "b": [1.0, -0.84]}), 20)
    assert sudden is not None
    assert slow is not None
    assert "[quantize.nodes] 'node_b' = 'float'" in sudden.advice[-1]
    assert "no single one is to blame" in slow.advice[-1]


def test_compare_refuses_when_nothing_is_in_common() -> None:
    with pytest.raises(UsageError, match="first and second have no tensor in common"):
        compared({"a": [1]}, {"b": [1]})


def test_in_network_order_undoes_the_order_when_a_tensor_was_stored_so() -> None:
    array = np.arange(24).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(in_network_order(array.transpose(0, 2, 3, 1), (0, 2, 3, 1)), array)
