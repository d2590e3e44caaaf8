"""SmoothQuant: a channel that is an outlier behind a normalization goes into the weights that read it."""

from pathlib import Path

import numpy as np
from float_graphs import node, write_graph
from planted_graphs import constants_of, corrected, float_error, noise, only, weights

SHAPE = (1, 8, 16)


def outlier_network(folder: Path, *, residual: bool = False):
    """A normalization whose channel 3 is a hundred times the others, and two products that read it."""
    scale = np.ones(16, np.float32)
    scale[3] = 100
    constants = {"scale": scale, "shift": 0.1 * scale, "q": weights(16, 16), "k": weights(16, 16, seed=2)}
    constants["q"][3] /= 50
    constants["k"][3] /= 50
    nodes = [node("LayerNormalization", "x scale shift", "n", axis=-1), node("MatMul", "n q", "y"),
             node("MatMul", "n k", "z")]  # fmt: skip
    if residual:
        nodes.append(node("Softmax", "n", "r", axis=-1))
    return write_graph(folder, nodes, constants, SHAPE, outputs=("y", "z", *(["r"] if residual else [])))


def test_smooth_makes_int8_useful_when_one_channel_is_an_outlier(tmp_path: Path) -> None:
    source, samples = outlier_network(tmp_path), noise(SHAPE)
    made, [gain] = corrected(source, only("smooth"), samples, tmp_path / "corrected")
    assert gain.kept
    assert gain.with_db > gain.without_db + 8
    assert float_error(source, made, samples) < 1e-6
    assert constants_of(made)["scale"][3] < 30 * np.median(constants_of(made)["scale"])


def test_smooth_leaves_a_normalization_alone_when_something_else_reads_it(tmp_path: Path) -> None:
    source = outlier_network(tmp_path, residual=True)
    _, gains = corrected(source, only("smooth", "on"), noise(SHAPE), tmp_path / "corrected")
    assert gains == []
