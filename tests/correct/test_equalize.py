"""Cross-layer equalization: uneven channels get even, nothing else changes, and branches are left alone."""

from pathlib import Path

import numpy as np
import pytest
from float_graphs import node, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_graphs import constants_of, corrected, float_error, int8_db, noise, only, uneven_channels, weights

from edgeopt.settings import QuantizeSettings

SHAPE = (1, 4, 6, 6)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Identity", "Clip"])
def test_equalize_makes_int8_useful_when_channels_are_uneven(tmp_path: Path, activation: str) -> None:
    source, samples = uneven_channels(tmp_path, activation), noise(SHAPE)
    made, [gain] = corrected(source, only("equalize"), samples, tmp_path / "corrected")

    assert gain.kept
    assert gain.places == 1
    assert gain.without_db < 15
    assert gain.with_db > gain.without_db + 15
    assert int8_db(made, samples) == pytest.approx(gain.with_db)
    assert float_error(source, made, samples[:4]) == 0.0  # powers of 2


def test_equalize_keeps_a_rare_channel_when_few_samples_show_it(tmp_path: Path) -> None:
    # Channel 0 speaks on one sample of eight: raised to what is seen of it, it would be cut off by the Clip.
    weight = np.ones((2, 1, 1, 1), np.float32)
    bias = np.array([-2.5, 0.0], np.float32)
    constants = {"w": weight, "b": bias, "v": np.array([[[[8]], [[1]]]], np.float32), "low": np.float32(0),
                 "high": np.float32(6)}  # fmt: skip
    nodes = [node("Conv", "x w b", "c"), node("Clip", "c low high", "a"), node("Conv", "a v", "y")]
    source = write_graph(tmp_path, nodes, constants, (1, 1, 2, 2))
    samples = [{"x": np.full((1, 1, 2, 2), value, np.float32)} for value in (1.0, 1.5, 3.0, 2.0)]
    made, _ = corrected(source, only("equalize", "on"), samples * 2, tmp_path / "corrected")
    assert float_error(source, made, [{"x": np.full((1, 1, 2, 2), 6.0, np.float32)}]) == 0.0


def test_equalize_scales_a_whole_residual_stream_when_all_of_it_is_linear(tmp_path: Path) -> None:
    sizes = np.exp2(-np.linspace(0, 10, 8)).astype(np.float32)
    constants = {
        "w": weights(8, 4, 1, 1) * sizes[:, None, None, None],
        "r": weights(8, 8, 1, 1, seed=2) * sizes[:, None, None, None] / sizes[None, :, None, None],
        "v": weights(4, 8, 1, 1, seed=3) / sizes[None, :, None, None],
    }
    nodes = [node("Conv", "x w", "c"), node("Conv", "c r", "d"), node("Add", "c d", "s"), node("Conv", "s v", "y")]
    source, samples = write_graph(tmp_path, nodes, constants, SHAPE), noise(SHAPE)
    made, [gain] = corrected(source, only("equalize"), samples, tmp_path / "corrected")
    assert gain.with_db > gain.without_db + 15
    assert float_error(source, made, samples) == 0.0


@pytest.mark.parametrize(
    ("extra", "outputs"),
    [
        ([node("Sigmoid", "a", "z")], ("y", "z")),  # is not homogeneous
        ([node("Concat", "a x", "z", axis=1)], ("y", "z")),  # mixes channels
        ([], ("y", "a")),  # an output of the network
    ],
)
def test_equalize_leaves_a_graph_alone_when_a_branch_cannot_take_the_factors(
    tmp_path: Path, extra: list, outputs: tuple[str, ...]
) -> None:
    source = uneven_channels(tmp_path, extra=tuple(extra), outputs=outputs)
    made, gains = corrected(source, only("equalize", "on"), noise(SHAPE), tmp_path / "corrected")
    assert gains == []
    before, after = constants_of(source), constants_of(made)
    assert all((before[name] == after[name]).all() for name in before)


def test_equalize_mends_weights_with_one_scale_when_their_rows_are_uneven(tmp_path: Path) -> None:
    source, samples = uneven_channels(tmp_path), noise(SHAPE)
    per_tensor = QuantizeSettings(weights="per_tensor")
    made, [gain] = corrected(source, only("equalize"), samples, tmp_path / "corrected", per_tensor)

    def spread(rows: np.ndarray) -> float:
        largest = np.abs(rows).max(axis=(1, 2, 3))
        return float(largest.max() / largest.min())

    assert gain.with_db > gain.without_db + 15
    assert spread(constants_of(source)["w"]) > 200
    assert spread(constants_of(made)["w"]) < 20


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_corrections_keep_every_answer_of_the_float_network(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    constants: dict[str, np.ndarray] = {}
    nodes, last, channels = [], "x", 4
    for index in range(data.draw(st.integers(2, 5))):
        kind = data.draw(st.sampled_from(["Conv", "depthwise", "BatchNormalization", "residual", "Relu", "MaxPool"]))
        wide = data.draw(st.sampled_from([4, 8])) if kind == "Conv" else channels
        scale = np.exp2(random.uniform(-6, 0, wide)).astype(np.float32)
        if kind in ("Conv", "depthwise", "residual"):
            groups = channels if kind == "depthwise" else 1
            constants[f"w{index}"] = weights(wide, channels // groups, 1, 1, seed=index) * scale[:, None, None, None]
            constants[f"b{index}"] = scale
            nodes.append(node("Conv", f"{last} w{index} b{index}", f"t{index}", group=groups))
            if kind == "residual":
                nodes.append(node("Add", f"{last} t{index}", f"s{index}"))
        elif kind == "BatchNormalization":
            for part in "sbmv":
                constants[f"{part}n{index}"] = scale
            parts = " ".join(f"{part}n{index}" for part in "sbmv")
            nodes.append(node("BatchNormalization", f"{last} {parts}", f"t{index}"))
        else:
            more = {"kernel_shape": [1, 1]} if kind == "MaxPool" else {}
            nodes.append(node(kind, last, f"t{index}", **more))
        last, channels = nodes[-1].output[0], wide
    constants["last"] = weights(4, channels, 1, 1, seed=9)
    nodes.append(node("Conv", f"{last} last", "y"))
    folder = tmp_path_factory.mktemp("graph")
    source, samples = write_graph(folder, nodes, constants, SHAPE), noise(SHAPE, 4)
    made, _ = corrected(source, only("equalize", "on"), samples, folder / "corrected")
    assert float_error(source, made, samples) < 1e-5
