"""Batch-norm folding: what scales and shifts channels goes into the weights beside it, where that is exact."""

from pathlib import Path

import numpy as np
import pytest
from float_graphs import node, write_graph
from planted_graphs import corrected, float_error, noise, only, op_types, weights

SHAPE = (1, 4, 6, 6)
FACTORS = np.array([3.0, 0.5, -1.0, 2.0], np.float32)
CHANNELS = {
    "factor": FACTORS.reshape(1, 4, 1, 1),
    "shift": np.array([1.0, -2.0, 0.5, 0.0], np.float32).reshape(1, 4, 1, 1),
    "pixel": FACTORS.reshape(4, 1, 1, 1),
    "w": weights(4, 4, 3, 3),
    "b": np.ones(4, np.float32),
    "t": weights(4, 4, 2, 2),
    "point": weights(4, 4, 1, 1),
}


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ([node("Conv", "x w b", "c"), node("Mul", "c factor", "m"), node("Add", "m shift", "y")], ["Conv"]),
        ([node("ConvTranspose", "x t", "c"), node("Conv", "c pixel b", "y", group=4)], ["ConvTranspose"]),
        ([node("Conv", "x pixel b", "c", group=4), node("Conv", "c w b", "y")], ["Conv"]),
        ([node("Mul", "x factor", "m"), node("Add", "m shift", "a"), node("Conv", "a point", "y")], ["Conv"]),
    ],
    ids=["spelt out behind", "behind a transposed convolution", "in front", "spelt out in front, without a bias"],
)
def test_fold_leaves_one_operator_when_it_is_exact(tmp_path: Path, nodes: list, left: list[str]) -> None:
    source, samples = write_graph(tmp_path, nodes, CHANNELS, SHAPE), noise(SHAPE)
    made, [gain] = corrected(source, only("fold_batch_norm", "on"), samples, tmp_path / "corrected")
    assert op_types(made) == left
    assert gain.places == len(op_types(source)) - 1
    assert float_error(source, made, samples) < 1e-6


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Add", "x shift", "a"), node("Conv", "a w b", "y", pads=[1, 1, 1, 1])],  # 0 is not what the border is
        [node("Conv", "x w b", "c"), node("Mul", "c factor", "m"), node("Concat", "c m", "y", axis=1)],  # read twice
        [node("Mul", "x factor", "m"), node("Relu", "m", "y")],
    ],
    ids=["padding", "two readers", "nothing beside"],
)
def test_fold_leaves_a_graph_alone_when_it_would_not_be_exact(tmp_path: Path, nodes: list) -> None:
    source = write_graph(tmp_path, nodes, CHANNELS, SHAPE)
    made, gains = corrected(source, only("fold_batch_norm", "on"), noise(SHAPE), tmp_path / "corrected")
    assert gains == []
    assert op_types(made) == op_types(source)
