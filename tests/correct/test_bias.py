"""Bias correction: what rounding the weights adds on average is gone from the quantized network."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from float_graphs import node, quantized, write_graph
from planted_graphs import NOTHING, noise, only

from edgeopt.artifacts import FloatModel, QdqModel
from edgeopt.correct.gain import Gain
from edgeopt.correct.qdq_graph import refine
from edgeopt.quantize.names import write_names
from edgeopt.quantize.scheme import ASYMMETRIC, SYMMETRIC, Scheme
from edgeopt.session import OnnxSession
from edgeopt.settings import CorrectSettings

SHAPE = (1, 3, 6, 6)
RANGES = {"x": (-1.0, 12.0), "c": (-30.0, 30.0), "y": (-30.0, 30.0)}


def bright(count: int = 8) -> list[dict[str, np.ndarray]]:
    """Samples that are far from 0 on average, so that errors of weights add up."""
    return [{"x": feeds["x"] + 8} for feeds in noise(SHAPE, count)]


def depthwise(folder: Path) -> FloatModel:
    """Weights that lie four tenths of a step above an integer, but for the largest, which sets the scale."""
    weight = np.full((3, 1, 3, 3), 40.4 / 127, np.float32)
    weight[:, :, 1, 1] = -1
    constants = {"w": weight, "b": np.zeros(3, np.float32)}
    return write_graph(folder, [node("Conv", "x w b", "y", group=3)], constants, SHAPE)


def refined(source: FloatModel, settings: CorrectSettings, folder: Path, scheme: Scheme) -> tuple[Path, list[Gain]]:
    """Quantize and correct a graph."""
    quantized(source, RANGES, scheme)
    write_names({}, source.path.parent)
    folder.mkdir()
    made, gains = refine(QdqModel(folder.parent / "model.onnx", scheme.name), source, settings, bright(), folder)
    return made.path, gains


def mean_error(source: FloatModel, made: Path) -> float:
    """Return the largest mean error of a channel, in real units."""
    pairs = [(OnnxSession(source.path).run(feeds)["y"], OnnxSession(made).run(feeds)["y"]) for feeds in bright()]
    return float(np.abs(np.mean([(b - a).mean(axis=(0, 2, 3)) for a, b in pairs], axis=0)).max())


@pytest.mark.parametrize("scheme", [ASYMMETRIC, SYMMETRIC])
def test_correct_bias_takes_the_mean_error_away_when_weights_round_one_way(tmp_path: Path, scheme: Scheme) -> None:
    source = depthwise(tmp_path)
    made, [gain] = refined(source, only("correct_bias"), tmp_path / "r", scheme)
    assert mean_error(source, tmp_path / "model.onnx") > 0.1
    assert mean_error(source, made) < 0.03
    assert gain.kept
    assert gain.with_db > gain.without_db + 3


def test_correct_bias_stays_within_half_of_int32_when_the_error_is_huge(tmp_path: Path) -> None:
    source = depthwise(tmp_path)
    made, _ = refined(source, only("correct_bias", "on"), tmp_path / "r", ASYMMETRIC)
    biases = [value for name, value in ir.load(made).graph.initializers.items() if name.endswith("b.quantized")]
    assert [value.dtype for value in biases] == [ir.DataType.INT32]
    assert np.abs(biases[0].const_value.numpy()).max() <= 2**30


def test_refine_changes_nothing_when_all_is_off(tmp_path: Path) -> None:
    source = depthwise(tmp_path)
    made, gains = refined(source, NOTHING, tmp_path / "r", ASYMMETRIC)
    before, after = (ir.load(path).graph.initializers for path in (tmp_path / "model.onnx", made))
    assert gains == []
    assert all((before[name].const_value.numpy() == after[name].const_value.numpy()).all() for name in before)
