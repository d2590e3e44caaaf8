"""Learned rounding: errors of weights that see the same signal make up for one another."""

from pathlib import Path

import numpy as np
import pytest
from float_graphs import node, quantized, write_graph
from planted_graphs import ALL_OFF, constants_of, noise, weights

from edgeopt.artifacts import QdqModel
from edgeopt.correct.qdq_graph import refine
from edgeopt.correct.rounding import rounded
from edgeopt.export import float_model
from edgeopt.quantize.names import write_names
from edgeopt.settings import CorrectSettings

LEARNED = CorrectSettings(**{**ALL_OFF, "rounding": "learned"})  # type: ignore[arg-type]


def test_rounded_rounds_to_the_nearest_when_inputs_are_independent() -> None:
    steps = np.array([[0.4, -1.6, 3.5, 200.0]])
    assert rounded(steps, np.eye(4), 127).tolist() == [[0, -2, 4, 127]]


def test_rounded_keeps_the_sum_when_all_inputs_are_the_same() -> None:
    # To the nearest the four would all become 0, and the output would lose 1.6 steps of 1.6.
    assert rounded(np.full((1, 4), 0.4), np.ones((4, 4)), 127).sum() == pytest.approx(2)


def test_rounded_keeps_zeros_zero_when_the_other_weights_err() -> None:
    whole = rounded(np.array([[0.4, 0.0, 0.4, 0.0]]), np.ones((4, 4)), 127)
    assert whole[0, [1, 3]].tolist() == [0, 0]
    assert whole.sum() == pytest.approx(1)


def test_rounded_leaves_no_more_error_than_the_nearest_when_inputs_are_correlated() -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((500, 3)) @ random.standard_normal((3, 24)) + 0.1 * random.standard_normal(
        (500, 24)
    )
    steps = 10 * random.standard_normal((8, 24))
    moments = inputs.T @ inputs / len(inputs)

    def error(whole: np.ndarray) -> float:
        return float(np.square((whole - steps) @ inputs.T).mean())

    assert error(rounded(steps, moments, 127)) < 0.3 * error(np.rint(steps))


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("Conv", "x w3 b", "c", pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "c", "y")], (1, 8, 8, 8)),
        ([node("Conv", "x w1 b", "y", group=8, kernel_shape=[3, 3])], (1, 8, 8, 8)),
        ([node("Conv", "x w4 b", "y", group=2)], (1, 8, 8, 8)),
        ([node("Gemm", "x w2 b", "y")], (1, 8)),
        ([node("MatMul", "x w2", "y")], (1, 3, 8)),
    ],
    ids=["dense", "depthwise", "grouped", "Gemm", "MatMul"],
)
def test_learned_rounding_moves_weights_by_less_than_two_steps_for_each_kind_of_layer(
    tmp_path: Path, nodes: list, shape: tuple[int, ...]
) -> None:
    constants = {"w3": weights(8, 8, 3, 3), "w1": weights(8, 1, 3, 3), "w4": weights(8, 4, 1, 1), "w2": weights(8, 8),
                 "b": np.zeros(8, np.float32)}  # fmt: skip
    samples = noise(shape, 40)
    if len(shape) > 3:  # all channels alike, so that there is something to learn
        samples = [{"x": np.repeat(feeds["x"][:, :1], 8, axis=1)} for feeds in samples]
    used = {name: value for name, value in constants.items() if any(name in item.input for item in nodes)}
    source = write_graph(tmp_path, nodes, used, shape)
    quantized(source, dict.fromkeys("xcy", (-3.0, 3.0)))
    write_names({}, tmp_path)
    (tmp_path / "r").mkdir()
    made, [gain] = refine(QdqModel(tmp_path / "model.onnx", "asymmetric"), source, LEARNED, samples, tmp_path / "r")

    before, after = constants_of(float_model(tmp_path / "model.onnx")), constants_of(float_model(made.path))
    [name] = [name for name in before if name.endswith("quantized") and before[name].dtype == np.int8]
    moved = np.abs(before[name].astype(int) - after[name].astype(int))
    assert gain.places == 1
    assert after[name].dtype == np.int8
    assert 0 < moved.mean() < 2
    assert gain.with_db > gain.without_db - 0.5
