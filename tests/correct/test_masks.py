"""Mask clamping: what hides scores from a Softmax is no longer than it has to be."""

from pathlib import Path

import numpy as np
import pytest
from float_graphs import node, write_graph
from onnx import NodeProto
from planted_graphs import constants_of, corrected, float_error, noise, only, weights

SHAPE = (1, 8, 16)
HIDDEN = np.triu(np.ones((8, 8), np.float32), 1)
PRODUCTS = {
    "q": weights(16, 16), "k": weights(16, 16, seed=2), "v": weights(16, 16, seed=3),
    "hidden": HIDDEN, "chosen": HIDDEN.astype(bool), "zero": np.float32(0), "out": weights(16, 16, seed=4),
}  # fmt: skip


def attention(hide: list[NodeProto]) -> list[NodeProto]:
    """Return attention over 8 tokens; ``hide`` turns scores ``s`` into what the Softmax takes, ``m``."""
    return [
        node("MatMul", "x q", "queries"), node("MatMul", "x k", "keys"), node("MatMul", "x v", "values"),
        node("Transpose", "keys", "turned", perm=[0, 2, 1]), node("MatMul", "queries turned", "s"), *hide,
        node("Softmax", "m", "p", axis=-1), node("MatMul", "p values", "o"), node("MatMul", "o out", "y"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", [-1e4, -3.4028235e38, -np.inf])
@pytest.mark.parametrize("form", ["product", "choice of a mask", "choice of scores", "array"])
def test_clamp_masks_keeps_the_answer_when_a_mask_is_far_below_the_scores(
    tmp_path: Path, number: float, form: str
) -> None:
    if form == "product" and np.isinf(number):
        number = -1e9  # 0 times infinity hides nothing
    forms = {
        "product": [node("Mul", "hidden number", "n"), node("Add", "s n", "m")],
        "choice of a mask": [node("Where", "chosen number zero", "n"), node("Add", "s n", "m")],
        "choice of scores": [node("Where", "chosen number s", "m")],
        "array": [node("Add", "s number", "m")],
    }
    value = np.where(HIDDEN > 0, number, 0) if form == "array" else number
    constants = {**PRODUCTS, "number": np.array(value, np.float32)}
    source, samples = write_graph(tmp_path, attention(forms[form]), constants, SHAPE), noise(SHAPE)
    made, [gain] = corrected(source, only("clamp_masks", "on"), samples, tmp_path / "corrected")

    clamped = constants_of(made)["number"].min()
    assert -60 < clamped < -20
    assert gain.places == 1
    assert float_error(source, made, samples) < 1e-5


def test_clamp_masks_makes_int8_useful_when_the_mask_is_added_in_int8(tmp_path: Path) -> None:
    constants = {**PRODUCTS, "number": np.float32(-1e4)}
    hide = [node("Mul", "hidden number", "n"), node("Add", "s n", "m")]
    source = write_graph(tmp_path, attention(hide), constants, SHAPE)
    _, [gain] = corrected(source, only("clamp_masks"), noise(SHAPE), tmp_path / "corrected")
    assert gain.kept
    assert gain.with_db > gain.without_db + 5


def test_clamp_masks_leaves_constants_alone_when_no_softmax_is_behind_them(tmp_path: Path) -> None:
    constants = {**PRODUCTS, "number": np.float32(-1e4)}
    nodes = [node("MatMul", "x q", "s"), node("Add", "s number", "y")]
    source = write_graph(tmp_path, nodes, constants, SHAPE)
    made, gains = corrected(source, only("clamp_masks", "on"), noise(SHAPE), tmp_path / "corrected")
    assert gains == []
    assert constants_of(made)["number"] == np.float32(-1e4)
