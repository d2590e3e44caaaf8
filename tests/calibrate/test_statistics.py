"""Ranges over samples: by hand, in any order, in constant memory, and never of something that is not a number."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgeopt.artifacts import FloatModel, TensorRange
from edgeopt.calibrate.observers import MinMaxObserver
from edgeopt.calibrate.statistics import NUM_PROBES, calibrate, read_statistics
from edgeopt.dataset import sample_digest
from edgeopt.errors import DataError
from edgeopt.export import float_model
from edgeopt.samples import Sample


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    """``inner = x * 2``, ``root = sqrt(inner)``, ``y = root - 1`` for x of shape (1, 2)."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["inner"]),
            helper.make_node("Sqrt", ["inner"], ["root"]),
            helper.make_node("Sub", ["root", "one"], ["y"]),
        ],
        "g", [value("x", 1, [1, 2])], [value("y", 1, [1, 2])],
        [numpy_helper.from_array(np.float32(number), name) for name, number in (("one", 1), ("two", 2))],
        value_info=[value("inner", 1, [1, 2]), value("root", 1, [1, 2])],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return float_model(path)


def samples(*rows: Sequence[float]) -> list[Sample]:
    return [Sample(f"s{index}", {"x": np.array([row], np.float32)}) for index, row in enumerate(rows)]


def ranges(source: FloatModel, found: Sequence[Sample], folder: Path) -> dict[str, TensorRange]:
    made = calibrate(source, ["inner", "root"], found, len(found), folder)
    return {name: item.seen for name, item in made.tensors.items()}


def test_calibrate_gives_the_smallest_and_largest_value_when_samples_are_known(
    doubled: FloatModel, tmp_path: Path
) -> None:
    found = ranges(doubled, samples([2, 8], [0.5, 4.5]), tmp_path)
    assert found == {
        "inner": TensorRange(1.0, 16.0),
        "root": TensorRange(1.0, 4.0),
        "x": TensorRange(0.5, 8.0),
        "y": TensorRange(0.0, 3.0),
    }


def test_read_statistics_loses_no_bit_when_they_were_written(doubled: FloatModel, tmp_path: Path) -> None:
    given_samples = samples([1 / 3, 1e-40], [2, 3])
    made = calibrate(doubled, ["root"], given_samples, 2, tmp_path)
    assert made.tensors["x"].seen.minimum == float(np.float32(1e-40))
    assert made.digests == tuple(sorted(map(sample_digest, given_samples)))
    assert made.outputs == ("y",)
    again = read_statistics(tmp_path)
    assert list(again.tensors) == ["root", "x", "y"]
    for name, item in again.tensors.items():
        assert item.seen == made.tensors[name].seen
        assert item.counts.sum() == 4


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)), st.integers(1, 7))
def test_calibrate_gives_the_same_bits_when_samples_come_in_another_order_or_in_parts(
    doubled: FloatModel, tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("out")
    random = np.random.default_rng(1)
    given_samples = samples(*random.random((8, 2)).tolist())
    whole = ranges(doubled, given_samples, folder)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    shuffled = [given_samples[index] for index in order]
    assert ranges(doubled, shuffled, folder) == whole
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written
    parts = [ranges(doubled, part, folder) for part in (shuffled[:cut], shuffled[cut:])]
    for name, item in whole.items():
        minimum, maximum = min(part[name].minimum for part in parts), max(part[name].maximum for part in parts)
        assert TensorRange(minimum, maximum) == item


def test_calibrate_names_tensor_and_sample_when_the_network_makes_a_nan(doubled: FloatModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tensor 'root' is NaN or infinite on sample 's1'"):
        ranges(doubled, samples([1, 2], [1, -1], [1, 3]), tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_calibrate_names_tensor_and_sample_when_the_sample_is_not_finite(
    doubled: FloatModel, tmp_path: Path, value: float
) -> None:
    with pytest.raises(DataError, match=r"tensor '\w+' is NaN or infinite on sample 's1'"):
        ranges(doubled, samples([1, 2], [1, value]), tmp_path)


def test_calibrate_names_tensor_and_sample_when_a_tensor_is_empty(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Compress", ["x", "none"], ["inner"], axis=1), helper.make_node("Relu", ["x"], ["y"])],
        "g", [value("x", 1, [1, 2])], [value("y", 1, [1, 2])],
        [numpy_helper.from_array(np.array([False, False]), "none")], value_info=[value("inner", 1, [1, "n"])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"tensor 'inner' is empty on sample 's0', of shape \[1, 0\]"):
        calibrate(float_model(tmp_path / "m.onnx"), ["inner"], samples([1, 2]), 1, tmp_path)


def test_calibrate_refuses_when_there_are_no_samples(doubled: FloatModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="calibration needs at least one sample, got none"):
        ranges(doubled, [], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tensors", [["x", "inner"], ["root"]])
def test_calibrate_refuses_when_an_input_is_constant(
    doubled: FloatModel, tmp_path: Path, tensors: Sequence[str]
) -> None:
    with pytest.raises(DataError, match="input 'x' is 3 everywhere in every calibration sample"):
        calibrate(doubled, tensors, samples([3, 3], [3, 3]), 2, tmp_path)


def test_calibrate_refuses_when_a_tensor_is_not_there(doubled: FloatModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the float graph has no tensor 'nothing' to observe"):
        calibrate(doubled, ["nothing"], samples([1, 2]), 1, tmp_path)


def test_calibrate_holds_one_sample_at_a_time_when_a_generator_makes_them(doubled: FloatModel, tmp_path: Path) -> None:
    made: list[weakref.ref[Sample]] = []
    most = 0

    def lazily() -> Iterator[Sample]:
        nonlocal most
        for index in range(24):
            gc.collect()
            most = max(most, sum(reference() is not None for reference in made))
            sample = Sample(f"s{index}", {"x": np.array([[index, index + 1]], np.float32)})
            made.append(weakref.ref(sample))
            yield sample

    found = calibrate(doubled, ["inner"], lazily(), 24, tmp_path)
    assert found.tensors["inner"].seen == TensorRange(0.0, 48.0)
    assert most <= 2 + NUM_PROBES  # the one just used, while the next is made, and those that are kept


def test_observer_takes_signed_zero_and_subnormals_as_they_are_when_updated() -> None:
    observer = MinMaxObserver()
    observer.update(np.array([1e-45, -0.0], np.float32), "t", "s")
    assert observer.range() == TensorRange(0.0, float(np.float32(1e-45)))
