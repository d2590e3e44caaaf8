from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from small_nets import build_small, distill_stage, noisy_patterns, step_context, train_stage
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.constraints import constrained
from edgeopt.compress.finetune import finetune
from edgeopt.compress.low_bit import LowBitReport, low_bit
from edgeopt.compress.projection import (
    binary,
    block_int4,
    from_inputs_last,
    from_rows,
    inputs_last,
    int4,
    rows_of,
    ternary,
)
from edgeopt.compress.sparsify import sparsify
from edgeopt.compress.step import result_in
from edgeopt.compress.structure import read_structure
from edgeopt.errors import CompressionError, RecipeError
from edgeopt.steps import DistillSettings, FinetuneSettings, LowBitSettings, SparsifySettings
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
@example([2.0**-126])  # its seventh is no normal number
def test_projection_leaves_what_it_made_whatever_it_was_given(project, values: list[float]) -> None:
    once = project(torch.tensor([values]))
    assert torch.equal(project(once), once)


def test_int4_leaves_what_it_made_when_there_are_many_scales() -> None:
    once = int4(torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(int4(once), once)


def test_blocks_have_factors_of_their_own_when_worked_by_hand() -> None:
    # The largest magnitude is 126 steps of 1. Its block has the factor 18: 40 is 2 times that. Of the other one, 21 and
    # -6 are 7 and -2 times 3, and nothing is lost; the last block is shorter than the others.
    weight = torch.tensor([[[126.0, 40.0, 21.0, -6.0, 5.0]]])
    assert block_int4(weight, 2).tolist() == [[[126.0, 36.0, 21.0, -6.0, 5.0]]]


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 40), st.sampled_from([2, 3, 16, 64]), st.integers(0, 2**32 - 1)
)
def test_blocks_are_numbers_of_four_bits_times_a_factor_and_stay(
    rows: int, places: int, inputs: int, block_size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, places, inputs, generator=generator) * torch.rand(rows, 1, 1, generator=generator)
    once = block_int4(weight, block_size)
    assert torch.equal(block_int4(once, block_size), once)
    assert torch.equal(once.abs().amax(dim=(1, 2)), weight.abs().amax(dim=(1, 2)))
    steps = once.double() / once.double().abs().amax(dim=(1, 2), keepdim=True) * 126
    for block in steps.split(block_size, dim=2):
        for one in block.flatten(0, 1):
            assert any(
                (one / factor).abs().max() < 7.001 and (one / factor - (one / factor).round()).abs().max() < 1e-4
                for factor in range(1, 19)
            )


def test_blocks_lose_less_than_rows_when_inputs_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 1, 256, generator=generator) * torch.rand(8, generator=generator).repeat_interleave(32)
    errors = [(made - weight).square().sum() for made in (block_int4(weight, 32), int4(weight[:, 0])[:, None])]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 0), ((6, 4, 3, 2), 0), ((4, 6, 3, 2), 1)])
def test_blocks_lie_along_the_input_channels_whatever_their_axis(shape: tuple[int, ...], axis: int) -> None:
    weight = torch.arange(math.prod(shape)).reshape(shape)
    moved = inputs_last(weight, axis)
    assert moved.shape == (6, math.prod(shape) // 24, 4)
    assert torch.equal(moved[1, 0], weight.select(axis, 1).reshape(4, -1)[:, 0])
    assert torch.equal(from_inputs_last(moved, weight, axis), weight)


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


def test_low_bit_trains_weights_in_blocks_and_later_training_keeps_them(tmp_path: Path) -> None:
    settings = LowBitSettings(block_size=4, finetune=TRAINING)
    model, report = coarse(tmp_path, settings)
    constraint = {"kind": "block_int4", "axis": 0, "keeps_zeros": False, "block_size": 4}
    assert read_structure(result_in(tmp_path).structure).constraints == {"4.weight": constraint}
    assert report.training is not None
    assert report.training.held_out_score > 0.5
    (tmp_path / "finetune").mkdir()
    further = FinetuneSettings(epochs=1, batch_size=50, learning_rate=3e-2, threads=1)
    finetune(step_context(build_small, *SHAPE, source=result_in(tmp_path), data=DATA), further, tmp_path / "finetune")
    again = build_small(result_in(tmp_path / "finetune"))
    assert not torch.equal(again[4].weight, model[4].weight)
    for trained in (model, again):
        weight = inputs_last(trained.get_parameter("4.weight").detach(), 0)
        assert torch.equal(block_int4(weight, 4), weight)


@pytest.mark.parametrize("settings", [LowBitSettings(), LowBitSettings(block_size=4)], ids=["int4", "block_int4"])
def test_weights_keep_their_few_bits_when_distilled_under_rounding(tmp_path: Path, settings: LowBitSettings) -> None:
    torch.manual_seed(0)
    teacher, _ = train_stage(build_small, TorchModel(), *DATA, TRAINING, folder_in(tmp_path, "teacher"))
    student = folder_in(tmp_path, "student")
    low_bit(step_context(build_small, *SHAPE, source=teacher), settings, student)
    rounded = DistillSettings(epochs=1, batch_size=50, threads=1, quantization_aware="asymmetric")
    made, _ = distill_stage(build_small, result_in(student), teacher, *DATA, rounded, folder_in(tmp_path, "distilled"))
    weight = inputs_last(build_small(made).get_parameter("4.weight").detach(), 0)
    assert not torch.equal(weight, inputs_last(build_small(result_in(student)).get_parameter("4.weight"), 0))
    nearest = block_int4(weight, 4) if settings.block_size else int4(rows_of(weight, 0)).reshape(weight.shape)
    assert torch.equal(nearest, weight)


def folder_in(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": -1}, "or 0 for no blocks, got -1"),
        ({"block_size": 24}, "a block has 4, 8, 16, 32, 64, 128, 256 input channels, or 0 for no blocks, got 24"),
        ({"block_size": 8, "weights": "binary"}, "int4 weights only, not of binary ones"),
    ],
)
def test_low_bit_refuses_blocks_of_no_kind(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        LowBitSettings(**settings)


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
