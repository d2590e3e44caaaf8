from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_nets import build_small, interrupt_after, noisy_patterns, step_context
from torch import nn

from edgeopt.compress.constraints import constrained
from edgeopt.compress.distill import distill
from edgeopt.compress.share import ShareReport, share
from edgeopt.compress.sparsify import sparsify
from edgeopt.compress.step import result_in
from edgeopt.compress.structure import Structure, read_structure
from edgeopt.errors import CompressionError, RecipeError
from edgeopt.steps import DistillSettings, ShareSettings, SparsifySettings
from edgeopt.training import TrainSettings

SHAPE = (1, 1, 8, 8)
DATA = noisy_patterns()
TRAINING = TrainSettings(epochs=3, batch_size=100, learning_rate=1e-2, threads=1, weight_decay=0.1)
FEW = ShareSettings(conv_values=8, linear_values=4)


def shared(folder: Path, settings: ShareSettings, source: Path | None = None) -> tuple[nn.Module, ShareReport]:
    torch.manual_seed(0)
    artifact = None if source is None else result_in(source)
    report = share(step_context(build_small, *SHAPE, source=artifact, data=DATA), settings, folder)
    return build_small(result_in(folder)), report


def num_values(model: nn.Module) -> dict[str, int]:
    return {name: len(torch.unique(model.get_parameter(f"{name}.weight"))) for name in ("0", "4", "9")}


def test_shared_weight_gets_the_sum_of_gradients_when_worked_by_hand() -> None:
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data.copy_(torch.tensor([[0.5, -1.0, 0.0], [-1.0, 0.5, 0.5]]))
    with constrained(layer, {"weight": {"kind": "shared"}}):
        (layer.weight * torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])).sum().backward()
        codebook = layer.parametrizations["weight"].original
        # Values in order: -1, 0, 0.5. Zero is pinned: it has no gradient.
        assert codebook.tolist() == [-1.0, 0.0, 0.5]
        assert codebook.grad.tolist() == [2.0 + 8.0, 0.0, 1.0 + 16.0 + 32.0]
        codebook.data += torch.tensor([0.25, 9.0, 0.125])

    assert layer.weight.tolist() == [[0.625, -0.75, 0.0], [-0.75, 0.625, 0.625]]


def test_share_leaves_few_values_when_layers_have_numbers_of_their_own(tmp_path: Path) -> None:
    model, report = shared(tmp_path, replace(FEW, values={"4": 5}, ignored_layers=("0",)))

    assert num_values(model) == {"0": 72, "4": 5, "9": 4}
    assert {layer.name: layer.num_values for layer in report.layers} == {"4": 5, "9": 4}
    assert all(0 < layer.relative_error < 0.2 for layer in report.layers)
    constraints = read_structure(result_in(tmp_path).structure).constraints
    assert constraints == {"4.weight": {"kind": "shared"}, "9.weight": {"kind": "shared"}}
    assert report.summary == "2 layers of at most 5 values each"


def test_share_trains_values_and_later_training_keeps_them_and_zeros(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("sparsify", "share", "distill")]
    for folder in folders:
        folder.mkdir()
    torch.manual_seed(0)
    sparsify(step_context(build_small, *SHAPE), SparsifySettings(sparsity=0.7), folders[0])
    sparse = build_small(result_in(folders[0]))
    untrained, _ = shared(tmp_path, FEW, folders[0])
    trained, report = shared(folders[1], replace(FEW, finetune=TRAINING), folders[0])
    assert report.training is not None
    settings = DistillSettings(epochs=1, batch_size=100, learning_rate=1e-2, threads=1)
    source = result_in(folders[1])
    distill(step_context(build_small, *SHAPE, source=source, teacher=source, data=DATA), settings, folders[2])
    distilled = build_small(result_in(folders[2]))

    for model in (untrained, trained, distilled):
        assert num_values(model) == {"0": 8, "4": 8, "9": 4}
        assert torch.equal(model[4].weight == 0, sparse[4].weight == 0)
    assert not torch.equal(untrained[4].weight, trained[4].weight)
    assert not torch.equal(trained[4].weight, distilled[4].weight)


def test_share_goes_on_bit_for_bit_when_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(FEW, finetune=TRAINING)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    shared(tmp_path / "whole", settings)
    with monkeypatch.context() as patched:
        interrupt_after(4, patched)  # structure and weights of the start, two checkpoints
        with pytest.raises(KeyboardInterrupt):
            shared(tmp_path / "broken", settings)
    assert (tmp_path / "broken/checkpoint.pt").exists()
    shared(tmp_path / "broken", settings)

    whole, broken = (tmp_path / name / "weights.safetensors" for name in ("whole", "broken"))
    assert broken.read_bytes() == whole.read_bytes()


def test_share_warns_when_batch_norm_will_be_folded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edgeopt"):
        shared(tmp_path, FEW)
    assert "few values become many" in caplog.text


def test_sparsify_is_refused_when_the_weights_are_shared(tmp_path: Path) -> None:
    shared(tmp_path, FEW)
    context = step_context(build_small, *SHAPE, source=result_in(tmp_path))
    with pytest.raises(CompressionError, match=r"'0\.weight', which is shared since") as caught:
        sparsify(context, SparsifySettings(sparsity=0.5), tmp_path)
    assert caught.value.hint == "put sparsify before the step that made it shared"


def test_constrained_refuses_two_codebooks_for_one_parameter() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    shared = {"0.weight": {"kind": "shared"}, "1.weight": {"kind": "shared"}}
    with (
        pytest.raises(CompressionError, match=r"'0\.weight' and '1\.weight' are one parameter"),
        constrained(model, shared),
    ):
        pass


def test_constrained_refuses_a_kind_and_a_weight_that_it_does_not_know() -> None:
    structure = Structure(constraints={"weight": {"kind": "striped"}})
    refused = pytest.raises(CompressionError, match="weight 'weight' has a constraint of kind 'striped'")
    with refused, constrained(nn.Linear(2, 2), structure.constraints):
        pass
    refused = pytest.raises(CompressionError, match=r"the network has no weight '3\.weight'")
    with refused, constrained(nn.Linear(2, 2), {"3.weight": {"kind": "shared"}}):
        pass


@pytest.mark.parametrize("settings", [{"conv_values": 1}, {"linear_values": -2}, {"values": {"4": 5000}}])
def test_settings_are_refused_when_a_codebook_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="a codebook has 2 to 4096 values"):
        ShareSettings(**settings)  # type: ignore[arg-type]
