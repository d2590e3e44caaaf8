from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import build_small, noisy_patterns, step_context
from torch import nn

from edgeopt.compress.constraints import constrained
from edgeopt.compress.finetune import finetune
from edgeopt.compress.low_bit import LowBitReport, low_bit
from edgeopt.compress.projection import binary, from_rows, int4, rows_of, ternary
from edgeopt.compress.sparsify import sparsify
from edgeopt.compress.step import result_in
from edgeopt.compress.structure import read_structure
from edgeopt.errors import CompressionError
from edgeopt.steps import FinetuneSettings, LowBitSettings, SparsifySettings
from edgeopt.training import TrainSettings

SHAPE = (1, 1, 8, 8)
DATA = noisy_patterns()
TRAINING = TrainSettings(epochs=4, batch_size=50, learning_rate=1e-2, threads=1)


def coarse(folder: Path, settings: LowBitSettings, source: Path | None = None) -> tuple[nn.Module, LowBitReport]:
    torch.manual_seed(0)
    artifact = None if source is None else result_in(source)
    report = low_bit(step_context(build_small, *SHAPE, source=artifact, data=DATA), settings, folder)
    return build_small(result_in(folder)), report


def most_values(model: nn.Module, name: str) -> int:
    """Return how many different values the output channel with the most of them has."""
    return max(len(torch.unique(channel)) for channel in model.get_parameter(f"{name}.weight"))


def test_ternary_is_what_the_paper_says_when_worked_by_hand() -> None:
    # Mean magnitude 1, threshold 0.7: 0.5 falls, and a = (1.5 + 2 + 0.9) / 3. The other row has one threshold of 0.
    weight = torch.tensor([[1.5, -2.0, 0.5, 0.9, -0.1], [0.0, 0.0, 0.0, 0.0, 0.0]])
    a = pytest.approx(4.4 / 3)
    assert ternary(weight)[0].tolist() == [a, pytest.approx(-4.4 / 3), 0.0, a, 0.0]
    assert ternary(weight)[1].tolist() == [0.0] * 5


def test_binary_is_what_the_paper_says_when_worked_by_hand() -> None:
    assert binary(torch.tensor([[1.0, -2.0, 0.0], [4.0, 0.0, -8.0]])).tolist() == [[1, -1, 1], [4, 4, -4]]


def test_int4_has_steps_of_a_seventh_when_worked_by_hand() -> None:
    # The largest magnitude is 7 steps of 0.5; 0.8 is 1.6 steps.
    assert int4(torch.tensor([[3.5, 0.8, -0.2, -1.0]])).tolist() == [[3.5, 1.0, 0.0, -1.0]]


@pytest.mark.parametrize("project", [ternary, binary, int4])
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40))
def test_projection_leaves_what_it_made_whatever_it_was_given(project, values: list[float]) -> None:
    once = project(torch.tensor([values]))
    assert torch.equal(project(once), once)


def test_int4_leaves_what_it_made_when_there_are_many_scales() -> None:
    once = int4(torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(int4(once), once)


def test_rows_are_output_channels_whatever_their_axis() -> None:
    weight = torch.arange(48.0).reshape(2, 6, 4)
    rows = rows_of(weight, 1)

    assert rows.shape == (6, 8)
    assert rows[0].tolist() == [0, 1, 2, 3, 24, 25, 26, 27]
    assert torch.equal(from_rows(rows, weight, 1), weight)


def test_gradient_passes_straight_to_the_float_weight_when_it_is_coarse() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, -2.0, 0.1]]))
    constraint = {"kind": "binary", "axis": 0, "keeps_zeros": False}
    with constrained(layer, {"weight": constraint}):
        (layer.weight * torch.tensor([[1.0, 2.0, 4.0]])).sum().backward()
        held = layer.parametrizations["weight"].original
        assert held.grad.tolist() == [[1.0, 2.0, 4.0]]
        held.data += torch.tensor([[0.0, 0.0, -0.2]])
    a = (1.0 + 2.0 + 0.1) / 3
    assert layer.weight.tolist() == [pytest.approx([a, -a, -a])]


@pytest.mark.parametrize(("weights", "count"), [("int4", 15), ("ternary", 3), ("binary", 2)])
def test_low_bit_trains_coarse_weights_and_later_training_keeps_them(tmp_path: Path, weights: str, count: int) -> None:
    (tmp_path / "finetune").mkdir()
    settings = LowBitSettings(weights=weights, finetune=TRAINING)  # type: ignore[arg-type]
    model, report = coarse(tmp_path, settings)

    # The first layer and the one that makes the output stay whole.
    assert (report.left_whole, [layer.name for layer in report.layers]) == (("0", "9"), ["4"])
    assert most_values(model, "4") <= count < most_values(model, "9")
    assert report.training is not None
    assert report.training.held_out_score > 0.5
    further = FinetuneSettings(epochs=1, batch_size=50, learning_rate=3e-2, threads=1)
    finetune(step_context(build_small, *SHAPE, source=result_in(tmp_path), data=DATA), further, tmp_path / "finetune")
    again = build_small(result_in(tmp_path / "finetune"))
    assert most_values(again, "4") <= count
    assert not torch.equal(again[4].weight, model[4].weight)


def test_low_bit_takes_every_layer_when_asked(tmp_path: Path) -> None:
    model, report = coarse(tmp_path, LowBitSettings(weights="int4", every_layer=True, ignored_layers=("0",)))

    assert [layer.name for layer in report.layers] == ["4", "9"]
    assert most_values(model, "9") <= 15
    assert 0 < report.layers[0].relative_error < 0.02


@pytest.mark.parametrize("weights", ["int4", "ternary"])
def test_zeros_stay_when_sparse_weights_get_few_bits(tmp_path: Path, weights: str) -> None:
    folders = [tmp_path / name for name in ("sparsify", "low_bit")]
    for folder in folders:
        folder.mkdir()
    torch.manual_seed(0)
    sparsify(step_context(build_small, *SHAPE), SparsifySettings(sparsity=0.5), folders[0])
    sparse = build_small(result_in(folders[0]))
    settings = LowBitSettings(weights=weights, finetune=TRAINING)  # type: ignore[arg-type]
    model, _ = coarse(folders[1], settings, folders[0])

    assert bool((model[4].weight[sparse[4].weight == 0] == 0).all())
    assert read_structure(result_in(folders[1]).structure).constraints["4.weight"]["keeps_zeros"]


def test_binary_weights_are_refused_when_the_weights_are_sparse(tmp_path: Path) -> None:
    sparsify(step_context(build_small, *SHAPE), SparsifySettings(sparsity=0.5), tmp_path)
    with pytest.raises(CompressionError, match=r"low_bit would make new values of weight '4\.weight', which is sparse"):
        coarse(tmp_path, LowBitSettings(weights="binary"), tmp_path)


def test_low_bit_refuses_when_no_layer_is_left(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="no layer is left for weights of few bits"):
        coarse(tmp_path, LowBitSettings(ignored_layers=("4",)))
