"""Which tensors are quantized, and which of them share a scale."""

from pathlib import Path

import numpy as np
import pytest
from float_graphs import activations, node, quantized, write_graph
from onnx import NodeProto

from edgeopt.errors import QuantizationError
from edgeopt.quantize.scheme import ASYMMETRIC, SYMMETRIC

W = {"w": np.ones((3, 3, 1, 1), np.float32)}
CONV = node("Conv", "x w", "c")


def scales(folder: Path, nodes: list[NodeProto], ranges: dict[str, tuple[float, float]], **more) -> dict:
    constants = {**W, **more.pop("constants", {})}
    outputs = more.pop("outputs", ("y",))
    return activations(quantized(write_graph(folder, nodes, constants, outputs=outputs), ranges, **more))


def in_steps(span: float) -> float:
    return float(np.float32(span / 255))


@pytest.mark.parametrize("activation", [node("Relu", "c", "y"), node("Clip", "c low high", "y")])
def test_quantize_puts_nothing_between_when_an_activation_follows_a_convolution(
    tmp_path: Path, activation: NodeProto
) -> None:
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    found = scales(tmp_path, [CONV, activation], {"x": (0, 2.55), "y": (0, 5.1)}, constants=bounds)
    assert found == {"x": (in_steps(2.55), -128), "y": (in_steps(5.1), -128)}


@pytest.mark.parametrize(
    "more",
    [[node("Neg", "c", "z")], [node("Relu", "c", "z")]],  # someone else reads it
)
def test_quantize_quantizes_both_when_the_convolution_has_another_reader(tmp_path: Path, more: list[NodeProto]) -> None:
    nodes = [CONV, node("Relu", "c", "y"), *more]
    assert {"x", "c", "y"} <= set(scales(tmp_path, nodes, {"x": (-3, 3)}, outputs=("y", "z")))


def test_quantize_quantizes_both_when_the_convolution_is_an_output(tmp_path: Path) -> None:
    found = scales(tmp_path, [CONV, node("Relu", "c", "y")], {}, outputs=("c", "y"))
    assert set(found) == {"x", "c", "y"}


def test_quantize_quantizes_both_when_the_bounds_of_a_clip_are_computed(tmp_path: Path) -> None:
    nodes = [CONV, node("ReduceMax", "x", "high", keepdims=0), node("Clip", "c low high", "y")]
    assert "c" in scales(tmp_path, nodes, {}, constants={"low": np.float32(0)})


def test_quantize_gives_each_its_own_scale_when_branches_are_added(tmp_path: Path) -> None:
    nodes = [CONV, node("Add", "c x", "s"), node("Relu", "s", "y")]
    found = scales(tmp_path, nodes, {"x": (-1, 1.55), "c": (-5.1, 0), "y": (0, 255)})
    assert set(found) == {"x", "c", "y"}  # the Relu is absorbed by the sum
    expected = {"x": in_steps(2.55), "c": in_steps(5.1), "y": 1.0}
    for name, scale in expected.items():
        assert scale <= found[name][0] <= scale * 1.02  # sums may widen a scale by a hair, for equal rounding
    assert (found["c"][1], found["y"][1]) == (127, -128)


def test_quantize_widens_the_scale_of_a_sum_when_a_constant_is_added(tmp_path: Path) -> None:
    nodes = [CONV, node("Add", "c one", "y")]
    found = scales(tmp_path, nodes, {"c": (-1, 1), "y": (0, 2)}, constants={"one": np.float32(1)})
    assert in_steps(2) < found["y"][0] <= in_steps(2) * 1.02  # 0 + 1 would be 127.5 steps, which rounds up or to even


def test_quantize_gives_one_scale_to_all_when_tensors_are_concatenated(tmp_path: Path) -> None:
    nodes = [CONV, node("Concat", "c x", "y", axis=1)]
    found = scales(tmp_path, nodes, {"x": (-1, 0), "c": (0, 4.1), "y": (-1, 4.1)})
    assert found["x"] == found["c"] == found["y"] == (in_steps(5.1), -78)  # -128 + 50


@pytest.mark.parametrize(
    "keeping",
    [
        node("MaxPool", "c", "k", kernel_shape=[2, 2]),
        node("Flatten", "c", "k"),
        node("Transpose", "c", "k", perm=[0, 2, 3, 1]),
        node("Resize", "c none sizes", "k", mode="nearest"),
        node("Tile", "c repeats", "k"),
        node("Expand", "c shape", "k"),
        node("ReduceMax", "c axes", "k"),
        node("ReduceMin", "c axes", "k"),
    ],
)
def test_quantize_keeps_the_scale_when_values_are_only_moved(tmp_path: Path, keeping: NodeProto) -> None:
    given = {"none": np.zeros(0, np.float32), "sizes": np.array([1, 1, 2, 2], np.float32), "axes": np.array([2])}
    constants = {**given, "repeats": np.array([2, 1, 1, 1]), "shape": np.array([2, 1, 1, 1])}
    nodes = [CONV, keeping, node("Identity", "k", "y")]
    found = scales(tmp_path, nodes, {"c": (-1, 4.1), "k": (0, 2), "y": (0, 1)}, constants=constants)
    assert found["c"] == found["k"] == found["y"] == (in_steps(5.1), -78)


def test_quantize_gives_a_linear_resize_a_scale_without_ties_when_its_range_is_its_inputs(tmp_path: Path) -> None:
    nodes = [CONV, node("Resize", "c none sizes", "r", mode="linear"), node("Conv", "r w", "y")]
    constants = {"none": np.zeros(0, np.float32), "sizes": np.array([1, 1, 2, 2], np.float32)}
    found = scales(tmp_path, nodes, {"c": (-1, 4.1), "r": (-1, 4.1)}, constants=constants)
    assert found["c"] == (in_steps(5.1), -78)
    assert in_steps(5.1) < found["r"][0] < 1.01 * in_steps(5.1)


@pytest.mark.parametrize(
    ("op_type", "expected"), [("Softmax", (1 / 256, -128)), ("Sigmoid", (1 / 256, -128)), ("Tanh", (1 / 128, 0))]
)
def test_quantize_gives_the_prescribed_scale_when_litert_prescribes_one(
    tmp_path: Path, op_type: str, expected: tuple[float, int]
) -> None:
    nodes = [CONV, node(op_type, "c", "t"), node("Flatten", "t", "y")]
    found = scales(tmp_path, nodes, {"t": (0.2, 0.4)})
    assert found["t"] == found["y"] == expected


def test_quantize_keeps_the_prescribed_scale_when_it_is_concatenated(tmp_path: Path) -> None:
    nodes = [CONV, node("Sigmoid", "c", "t"), node("Concat", "t x", "y", axis=1)]
    found = scales(tmp_path, nodes, {"x": (-4.1, 1), "y": (-4.1, 1)})
    assert found["t"] == (1 / 256, -128)
    assert found["y"] == found["x"] == (in_steps(5.1), 77)


def test_quantize_leaves_a_node_float_when_float_nodes_names_it(tmp_path: Path) -> None:
    nodes = [CONV, node("Sigmoid", "c", "t"), node("Mul", "t c", "y")]
    assert set(scales(tmp_path, nodes, {}, float_nodes=("Sigmoid_t",))) == {"x", "c", "t", "y"}
    nodes = [CONV, node("Conv", "c w", "d"), node("Neg", "d", "y")]
    assert set(scales(tmp_path, nodes, {}, float_nodes=("Conv_d",))) == {"x", "c"}


def test_quantize_leaves_an_activation_alone_when_float_nodes_names_it(tmp_path: Path) -> None:
    nodes = [CONV, node("Relu", "c", "y")]
    assert set(scales(tmp_path, nodes, {}, float_nodes=("Relu_y",))) == {"x", "c"}


def test_quantize_asks_did_you_mean_when_float_nodes_names_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        QuantizationError, match=r"(?s)quantize.nodes: there is no node 'Conv_y'.*did you mean 'Conv_c'"
    ):
        scales(tmp_path, [CONV, node("Relu", "c", "y")], {}, float_nodes=("Conv_y",))


@pytest.mark.parametrize("scheme", [ASYMMETRIC, SYMMETRIC])
@pytest.mark.parametrize("all_float", [True, False])
def test_quantize_refuses_when_nothing_is_left(tmp_path: Path, scheme, all_float: bool) -> None:
    nodes = [CONV, node("Relu", "c", "y")] if all_float else [node("Relu", "x", "y")]
    with pytest.raises(QuantizationError, match="the graph has no convolution or matrix product"):
        scales(tmp_path, nodes, {}, scheme=scheme, float_nodes=("Conv_c",) if all_float else ())


def test_quantize_says_which_tensor_when_one_was_not_calibrated(tmp_path: Path) -> None:
    from edgeopt.artifacts import Ranges
    from edgeopt.quantize.qdq import quantize
    from edgeopt.settings import QuantizeSettings

    source = write_graph(tmp_path, [node("Conv", "x w", "y")], W)
    with pytest.raises(QuantizationError, match="tensor 'x' was not calibrated"):
        quantize(source, Ranges(source.path, {}, 1), ASYMMETRIC, QuantizeSettings(), tmp_path)
