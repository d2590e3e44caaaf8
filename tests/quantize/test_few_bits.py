"""Weights that were trained with few bits: their integers in the graph, and how the targets store them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from float_graphs import activations, dequantizer, node, quantized, write_graph
from tflite_runtimes import lowered, run_tflite, steps_apart

from edgeopt.quantize.scheme import ASYMMETRIC, SYMMETRIC
from edgeopt.targets.arm64.int4 import pack_weights
from edgeopt.tflite.inspect import FileTensor, read_tflite
from edgeopt.tflite.lower import lower

INTEGERS = np.random.default_rng(0).integers(-7, 8, (4, 12))
INTEGERS[:, 0] = 7
SCALES = np.array([0.5, 0.01, 3.0, 0.25], np.float32)[:, None]


def linear(folder: Path, weight: np.ndarray):
    constants = {"w": weight.astype(np.float32), "b": np.array([0.3, -0.1, 2.0, 0.0], np.float32)}
    return write_graph(folder, [node("Gemm", "x w b", "y", transB=1)], constants, shape=(2, 12))


@pytest.mark.parametrize("noise", [0.0, 1e-7])  # what folding a batch norm leaves
def test_quantize_keeps_integers_of_four_bits_when_the_weights_are_such(tmp_path: Path, noise: float) -> None:
    weight = INTEGERS * SCALES * (1 + noise * np.random.default_rng(1).standard_normal((4, 12)))
    for scheme in ({}, {"scheme": SYMMETRIC}):
        _, (integers, scale, _) = dequantizer(quantized(linear(tmp_path, weight), {}, **scheme), "Gemm", 1)
        assert integers.tolist() == INTEGERS.tolist()
        np.testing.assert_allclose(scale, SCALES[:, 0], rtol=1e-6)


def test_quantize_stores_three_values_as_three_integers(tmp_path: Path) -> None:
    ternary = np.sign(INTEGERS) * (np.abs(INTEGERS) > 3)
    _, (integers, _, _) = dequantizer(quantized(linear(tmp_path, ternary * SCALES), {}), "Gemm", 1)
    assert integers.tolist() == (7 * ternary).tolist()


def test_quantize_keeps_numbers_of_four_bits_and_the_factors_of_their_blocks(tmp_path: Path) -> None:
    integers = INTEGERS * np.repeat([[18, 3, 1]], 4, axis=1)
    for largest, expected in ((127, integers), (64, None)):  # 7 bits cannot hold them
        scheme = replace(ASYMMETRIC, largest_weight=largest)
        _, (found, scale, _) = dequantizer(quantized(linear(tmp_path, integers * SCALES), {}, scheme=scheme), "Gemm", 1)
        if expected is not None:
            assert found.tolist() == expected.tolist()
            np.testing.assert_allclose(scale, SCALES[:, 0], rtol=1e-6)
        else:
            assert np.abs(found).max(axis=1).tolist() == [64] * 4


def test_quantize_uses_all_of_int8_when_one_weight_is_between_two_integers(tmp_path: Path) -> None:
    weight = INTEGERS * SCALES
    weight[2, 3] += 0.1 * SCALES[2, 0]
    _, (integers, _, _) = dequantizer(quantized(linear(tmp_path, weight), {}), "Gemm", 1)
    assert np.abs(integers).max(axis=1).tolist() == [127] * 4


def test_arm64_packs_weights_of_four_bits_and_answers_the_same(tmp_path: Path) -> None:
    model = quantized(linear(tmp_path, INTEGERS * SCALES), {"y": (-60.0, 60.0)})
    packed = ir.from_proto(model)
    pack_weights(packed)
    plain, small = lowered(model), lower(packed)

    assert [[tensor.dtype for tensor in weights_in(content)] for content in (plain, small)] == [["int8"], ["int4"]]
    feeds = {"x": np.random.default_rng(2).uniform(-1, 1, (2, 12)).astype(np.float32)}
    (expected,), (found,) = (run_tflite(content, feeds).values() for content in (plain, small))
    assert np.array_equal(expected, found)
    assert steps_apart(model, small, feeds, activations(model)["y"][0]).max() == 0


def test_arm64_packs_nothing_when_one_weight_needs_eight_bits(tmp_path: Path) -> None:
    weight = INTEGERS * SCALES
    weight[2, 3] += 0.1 * SCALES[2, 0]
    model = ir.from_proto(quantized(linear(tmp_path, weight), {}))
    pack_weights(model)
    assert [tensor.dtype for tensor in weights_in(lower(model))] == ["int8"]


def weights_in(content: bytes) -> list[FileTensor]:
    """Return the weights of the one product in a file."""
    (operator,) = [item for item in read_tflite(content).operators if item.builtin == "FULLY_CONNECTED"]
    return [operator.inputs[1]]
