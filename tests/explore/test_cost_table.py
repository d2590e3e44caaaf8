"""Tables of costs: what is measured exactly, what is interpolated, and how far that is from whole networks."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.devices.single_operators import single_operators
from edgeopt.errors import UsageError
from edgeopt.explore.cost_table import CostTable, Origin, table_error
from edgeopt.explore.layers import Layer, layers_of
from edgeopt.explore.measuring import open_table
from edgeopt.explore.single_layer import as_tflite
from edgeopt.parity import open_model

ORIGIN = Origin("instructions", "a board", "a runtime 1.0")
CONV = Layer("conv", 8, 16, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1, (8, 8), (8, 8))


def counting(calls: list[list[Layer]], cost_per_mac: float = 2.0):
    """Return what measures layers by arithmetic, and notes what it was asked for."""

    def measure(layers: Sequence[Layer]) -> tuple[float, list[float]]:
        calls.append(list(layers))
        return 100.0, [cost_per_mac * layer.work for layer in layers]

    return measure


def widths(*channels: int) -> list[Layer]:
    return [replace(CONV, out_channels=width) for width in channels]


class Residual(nn.Module):
    """Along one axis, with a layer that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding="same", dilation=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(self.conv(x))


# ---------------------------------------------------------------- layers


def test_layers_of_has_kind_window_and_sizes_when_a_network_is_run() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    assert layers_of(net, (torch.zeros(1, 3, 16, 16),)) == [
        Layer("conv", 3, 8, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), 1, (16, 16), (8, 8)),
        Layer("depthwise_conv", 8, 8, (3, 3), (1, 1), (1, 1), (0, 0, 0, 0), 8, (8, 8), (6, 6)),
        Layer("max_pool", 8, 8, (2, 2), (2, 2), (1, 1), (0, 0, 0, 0), 8, (6, 6), (3, 3)),
        Layer("average_pool", 8, 8, (3, 3), (3, 3), (1, 1), (0, 0, 0, 0), 8, (3, 3), (1, 1)),
        Layer("linear", 8, 5, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1, (1, 1), (1, 1)),
    ]


def test_layers_of_has_a_height_of_1_when_a_layer_runs_along_one_axis() -> None:
    same = Layer("conv", 4, 4, (1, 3), (1, 1), (1, 2), (0, 2, 0, 2), 1, (1, 10), (1, 10))
    assert layers_of(Residual(), (torch.zeros(1, 4, 10),)) == [same, same]


@pytest.mark.parametrize(
    ("layer", "builtins", "shape"),
    [
        (CONV, ["CONV_2D"], (1, 8, 8, 16)),
        (replace(CONV, stride=(2, 2), out_size=(4, 4)), ["PAD", "CONV_2D"], (1, 4, 4, 16)),
        (replace(CONV, kind="depthwise_conv", out_channels=8, groups=8), ["DEPTHWISE_CONV_2D"], (1, 8, 8, 8)),
        (Layer("linear", 12, 5, (1, 1), (1, 1), (1, 1), (0,) * 4, 1, (1, 1), (1, 1)), ["FULLY_CONNECTED"], (1, 5)),
        (Layer("max_pool", 4, 4, (2, 2), (2, 2), (1, 1), (0,) * 4, 4, (6, 6), (3, 3)), ["MAX_POOL_2D"], (1, 3, 3, 4)),
    ],
)
def test_as_tflite_is_one_integer_layer_when_litert_runs_it(
    tmp_path: Path, layer: Layer, builtins: list[str], shape: tuple[int, ...]
) -> None:
    path = tmp_path / "layer.tflite"
    path.write_bytes(as_tflite(layer))
    assert [part.builtin for part in single_operators(path.read_bytes())][1:] == builtins
    given = (1, layer.in_channels) if layer.kind == "linear" else (1, *layer.in_size, layer.in_channels)
    answers = open_model(str(path), "ai-edge-litert", 1)({"x": np.zeros(given, np.int8)})
    assert answers["y"].shape == shape
    assert answers["y"].dtype == np.int8


# ---------------------------------------------------------------- tables


def test_predict_is_the_call_and_the_sum_of_layers_when_all_were_measured(tmp_path: Path) -> None:
    table = CostTable(ORIGIN, counting([]), tmp_path / "table.json")
    layers = widths(8, 16)
    table.cover(layers, 10)
    assert table.predict(layers) == 100 + 2.0 * sum(layer.work for layer in layers)


def test_predict_lies_between_its_neighbours_when_a_width_was_not_measured(tmp_path: Path) -> None:
    def measure(layers: Sequence[Layer]) -> tuple[float, list[float]]:
        return 0.0, [layer.work * (3.0 if layer.out_channels == 8 else 1.0) for layer in layers]

    table = CostTable(ORIGIN, measure, tmp_path / "table.json")
    table.cover(widths(8, 32), 2)
    (middle,) = widths(16)
    assert table.predict([middle]) == pytest.approx(2.0 * middle.work)  # as far, in octaves, from the one as the other


def test_predict_costs_as_much_as_the_whole_block_when_a_layer_has_fewer_channels(tmp_path: Path) -> None:
    table = CostTable(ORIGIN, counting([]), tmp_path / "table.json")
    table.cover(widths(8, 64), 2)
    assert table.predict(widths(3)) == pytest.approx(table.predict(widths(8)), rel=1e-6)


def test_cover_measures_what_is_most_unlike_the_rest_when_there_are_too_many(tmp_path: Path) -> None:
    calls: list[list[Layer]] = []
    table = CostTable(ORIGIN, counting(calls), tmp_path / "table.json")
    table.cover(widths(8, 9, 10, 64, 62), 2)
    assert [{layer.out_channels for layer in asked} for asked in calls] == [{8, 64}]


def test_predict_measures_a_layer_when_its_family_is_new(tmp_path: Path) -> None:
    calls: list[list[Layer]] = []
    table = CostTable(ORIGIN, counting(calls), tmp_path / "table.json")
    table.cover(widths(8), 1)
    wider = replace(CONV, kernel=(5, 5), padding=(2, 2, 2, 2))
    assert table.predict([wider]) == 100 + 2.0 * wider.work
    assert calls == [widths(8), [wider]]


def test_table_is_read_and_not_measured_again_when_it_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    CostTable(ORIGIN, counting([]), path).cover(widths(8, 16), 10)
    calls: list[list[Layer]] = []
    table = CostTable(ORIGIN, counting(calls), path)
    table.cover(widths(8, 16), 10)
    assert calls == []
    assert table.predict(widths(16)) == 100 + 2.0 * widths(16)[0].work


@pytest.mark.parametrize(
    ("origin", "content", "message"),
    [
        (replace(ORIGIN, device="another"), None, "has instructions of a runtime 1.0 on a board, this search needs"),
        (ORIGIN, "{}", "is not a table of costs"),
        (ORIGIN, '{"schema_version": 9}', "schema_version is 9, expected 1"),
    ],
)
def test_table_is_refused_when_it_is_of_another_origin_or_damaged(
    tmp_path: Path, origin: Origin, content: str | None, message: str
) -> None:
    path = tmp_path / "table.json"
    CostTable(ORIGIN, counting([]), path).cover(widths(8), 1)
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        CostTable(origin, counting([]), path)


def test_table_error_is_that_of_hand_when_pairs_are_compared() -> None:
    error = table_error([(90.0, 100.0), (210.0, 200.0), (300.0, 300.0)])
    assert error is not None
    assert error.mean_relative_error == pytest.approx((0.1 + 0.05) / 3)
    assert error.worst_relative_error == pytest.approx(0.1)
    assert error.r2 == pytest.approx(1 - 200 / 20000)
    assert table_error([]) is None
    assert table_error([(1.0, 2.0)]).r2 is None  # type: ignore[union-attr]


def test_latency_table_has_times_of_this_machine_when_litert_runs_the_layers(tmp_path: Path) -> None:
    table = open_table("latency_ms", tmp_path / "table.json")
    small, large = replace(CONV, in_size=(4, 4), out_size=(4, 4)), replace(CONV, in_channels=64, out_channels=256)
    table.cover([small, large], 2)
    assert 0 <= table.predict([small]) < table.predict([large]) < math.inf
