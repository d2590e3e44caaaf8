"""The choice of ranges: by each method, by what it does to the answers, and never of the answers themselves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeopt.affine import asymmetric_int8, symmetric_int8
from edgeopt.artifacts import FloatModel, Ranges, TensorRange, read_ranges
from edgeopt.calibrate.ranges import choose_ranges
from edgeopt.calibrate.report import calibration_report
from edgeopt.calibrate.statistics import Statistics, calibrate, read_statistics
from edgeopt.export import float_model
from edgeopt.samples import Sample
from edgeopt.settings import CalibrationSettings

SETTINGS = CalibrationSettings("these")


def weighted(folder: Path, weight_of_outlier: float, last: str = "Identity") -> FloatModel:
    """``scores = relu(x) @ weights`` over 64 channels, of which the last one is the outlier's; then ``last``."""
    value = helper.make_tensor_value_info
    weights = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    weights[-1] *= weight_of_outlier
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["inner"]),
            helper.make_node("MatMul", ["inner", "weights"], ["scores"]),
            helper.make_node(last, ["scores"], ["y"]),
        ],
        "g", [value("x", 1, [1, 64])], [value("y", 1, [1, 4])], [numpy_helper.from_array(weights, "weights")],
        value_info=[value("inner", 1, [1, 64]), value("scores", 1, [1, 4])],
    )  # fmt: skip
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return float_model(path)


def observed(source: FloatModel, folder: Path) -> Statistics:
    """Calibrate on 64 samples, the last channel of each about 20 times as large as the others."""
    random = np.random.default_rng(1)
    rows = random.standard_normal((64, 1, 64)).astype(np.float32)
    rows[..., -1] = 60 + random.standard_normal((64, 1))
    samples = [Sample(str(index), {"x": row}) for index, row in enumerate(rows)]
    return calibrate(source, ["inner", "scores"], samples, len(samples), folder)


def chosen(source: FloatModel, statistics: Statistics, folder: Path, method: str = "auto") -> Ranges:
    return choose_ranges(source, statistics, asymmetric_int8, replace(SETTINGS, method=method, percentile=95), folder)


@pytest.mark.parametrize("last", ["Identity", "Softmax"])
def test_auto_clips_an_outlier_when_nothing_hangs_on_it(tmp_path: Path, last: str) -> None:
    source = weighted(tmp_path, 0.0, last)
    found = chosen(source, observed(source, tmp_path), tmp_path)
    assert found.observed["inner"].maximum > 60
    assert found.tensors["inner"].maximum < 10


@pytest.mark.parametrize("last", ["Identity", "Softmax"])
def test_auto_keeps_an_outlier_when_the_answer_hangs_on_it(tmp_path: Path, last: str) -> None:
    source = weighted(tmp_path, 1.0, last)
    found = chosen(source, observed(source, tmp_path), tmp_path)
    assert found.tensors["inner"].maximum > 55
    clipped = chosen(source, read_statistics(tmp_path), tmp_path, "percentile")
    assert clipped.tensors["inner"].maximum < 10  # the same statistics, another method


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse", "auto"])
def test_choose_ranges_never_clips_what_the_network_answers(tmp_path: Path, method: str) -> None:
    source = weighted(tmp_path, 1.0)
    found = chosen(source, observed(source, tmp_path), tmp_path, method)
    assert found.tensors["y"] == found.observed["y"]
    assert set(found.tensors) == set(found.observed) == {"x", "inner", "scores", "y"}


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse", "auto"])
def test_choose_ranges_writes_the_same_bytes_when_samples_come_in_another_order(tmp_path: Path, method: str) -> None:
    source = weighted(tmp_path, 0.5)
    statistics = observed(source, tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    first = chosen(source, statistics, tmp_path, method).path.read_bytes()
    random = np.random.default_rng(1)
    rows = random.standard_normal((64, 1, 64)).astype(np.float32)
    rows[..., -1] = 60 + random.standard_normal((64, 1))
    backwards = [Sample(str(index), {"x": row}) for index, row in enumerate(rows[::-1])]
    again = calibrate(source, ["inner", "scores"], backwards, 64, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in written} == written
    assert chosen(source, again, tmp_path, method).path.read_bytes() == first


def test_choose_ranges_differ_by_scheme_when_statistics_are_the_same(tmp_path: Path) -> None:
    source = weighted(tmp_path, 1.0)
    statistics, settings = observed(source, tmp_path), replace(SETTINGS, method="mse")
    one, other = (
        choose_ranges(source, statistics, scheme, settings, tmp_path) for scheme in (asymmetric_int8, symmetric_int8)
    )
    assert one.tensors != other.tensors
    assert one.observed == other.observed


def test_read_ranges_loses_no_bit_when_they_were_written(tmp_path: Path) -> None:
    source = weighted(tmp_path, 1.0)
    made = chosen(source, observed(source, tmp_path), tmp_path, "minmax")
    assert read_ranges(made.path) == made
    assert made.tensors == made.observed
    assert made.num_samples == 64


def test_calibration_report_tells_what_is_clipped_when_a_tail_is(tmp_path: Path) -> None:
    source = weighted(tmp_path, 1.0)
    statistics = observed(source, tmp_path)
    report = calibration_report(statistics, chosen(source, statistics, tmp_path, "percentile"), "asymmetric")
    inner = next(tensor for tensor in report.tensors if tensor.name == "inner")
    assert inner.method == "percentile"
    assert inner.clipped_share == pytest.approx(1 / 64, rel=1.0)
    assert inner.tail is not None
    assert inner.tail[-1] == pytest.approx(inner.observed.maximum, rel=0.01)
    assert json.loads(json.dumps(report.to_json()))["tensors"][0]["observed"]["minimum"] == inner.observed.minimum


def test_calibration_report_has_no_tail_when_only_bounds_were_kept(tmp_path: Path) -> None:
    source = weighted(tmp_path, 1.0)
    samples = [Sample(str(index), {"x": np.full((1, 64), index, np.float32)}) for index in range(3)]
    statistics = calibrate(source, ["inner"], samples, 3, tmp_path, histograms=False)
    report = calibration_report(statistics, chosen(source, statistics, tmp_path, "minmax"), "asymmetric")
    assert [tensor.tail for tensor in report.tensors] == [None] * 3
    assert report.tensors[0].observed == TensorRange(0.0, 2.0)
    assert not (tmp_path / "probes.npz").exists()


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse", "auto"])
def test_choose_ranges_keeps_a_tensor_that_is_zero_everywhere_as_it_is(tmp_path: Path, method: str) -> None:
    source = weighted(tmp_path, 1.0)
    random = np.random.default_rng(3)
    samples = [Sample(str(index), {"x": -random.random((1, 64), np.float32) - 1}) for index in range(4)]
    statistics = calibrate(source, ["inner", "scores"], samples, 4, tmp_path)
    assert not statistics.warnings
    found = chosen(source, statistics, tmp_path, method)
    assert found.tensors["inner"] == found.tensors["y"] == TensorRange(0.0, 0.0)


@pytest.mark.parametrize("method", ["percentile", "auto"])
def test_statistics_warn_of_one_huge_value_and_methods_can_drop_it(tmp_path: Path, method: str) -> None:
    source = weighted(tmp_path, 0.0)
    rows = np.random.default_rng(4).standard_normal((400, 1, 64)).astype(np.float32)
    rows[7, 0, 63] = 1e30
    samples = [Sample(str(index), {"x": row}) for index, row in enumerate(rows)]
    statistics = calibrate(source, ["inner"], samples, 400, tmp_path)
    assert len(statistics.warnings) == 2  # of x and of inner; weights of 0 keep it from what follows
    assert "tensor 'inner' reaches 1e+30, but 99.99% of its values lie within 3.61" in statistics.warnings[0]
    assert chosen(source, statistics, tmp_path, method).tensors["inner"].maximum < 10
