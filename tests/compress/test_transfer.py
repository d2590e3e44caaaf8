from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_nets import step_context
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.chain import run_step
from edgeopt.compress.rebuild import other_model, rebuild
from edgeopt.compress.step import StepContext, hand_on, result_in
from edgeopt.compress.structure import Structure, read_structure
from edgeopt.compress.transfer import transfer
from edgeopt.errors import CompressionError, RecipeError
from edgeopt.settings import InputSettings, ModelSettings
from edgeopt.source import read_state_dict
from edgeopt.steps import LowBitSettings, NetworkSettings, PruneSettings, TransferSettings

NETS = """
from torch import nn

def build(width=8, classes=3):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, classes))

def deeper():
    body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(8 * 36, 3))
"""


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    """The recipe's network of width 8, with weights, as the chain hands it on."""
    (tmp_path / "net.py").write_text(NETS)
    own = ModelSettings({"image": InputSettings((1, 1, 8, 8))}, factory="net.py:build")

    def build(artifact: TorchModel) -> nn.Module:
        return rebuild(own, tmp_path, artifact)

    def other(network: NetworkSettings) -> nn.Module:
        settings = other_model(own, network.factory, network.arguments, network.weights)
        return rebuild(settings, tmp_path, TorchModel(structure=network.structure))

    torch.manual_seed(0)
    (tmp_path / "before").mkdir()
    source = hand_on(build(TorchModel()), Structure(), tmp_path / "before")
    whole = step_context(build, 1, 1, 8, 8, source=source)
    return StepContext(
        whole.build,
        source,
        source,
        whole.example_inputs,
        whole.open_split,
        1,
        other,
        lambda text: read_state_dict(tmp_path / text),
    )


def run(context: StepContext, folder: Path, **settings: object):
    folder.mkdir()
    report = transfer(context, TransferSettings(**settings), folder)  # type: ignore[arg-type]
    return report, context.build(result_in(folder))


def test_transfer_takes_the_corner_when_the_new_network_is_wider(context: StepContext, tmp_path: Path) -> None:
    report, model = run(context, tmp_path / "wide", arguments={"width": 12}, parameters="partial")
    before = load_file(context.source.weights)

    assert torch.equal(model[0].weight[:8], before["0.weight"])
    assert model[0].weight[8:].abs().min() > 0
    assert set(report.partial) >= {"0.weight", "1.running_mean", "3.weight"}
    assert report.matched == ("1.num_batches_tracked", "3.bias")
    assert read_structure(tmp_path / "wide" / "structure.json").factory == {"factory": None, "arguments": {"width": 12}}


def test_transfer_takes_only_equal_shapes_when_not_asked_for_corners(context: StepContext, tmp_path: Path) -> None:
    report, _ = run(context, tmp_path / "wide", arguments={"width": 12}, min_matched=0.0)

    assert report.partial == ()
    assert "0.weight" in report.new
    assert "0.weight" in report.unused


def test_transfer_finds_other_names_when_told_how_they_begin(context: StepContext, tmp_path: Path) -> None:
    rename = {"0.": "0.0.", "1.": "0.1.", "3.": "2."}
    report, model = run(context, tmp_path / "deep", factory="net.py:deeper", rename=rename)

    assert (report.matched_share, report.new, report.unused) == (1.0, (), ())
    image = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(image), context.build(context.source)(image))


def test_transfer_renames_constraints_with_their_weights(context: StepContext, tmp_path: Path) -> None:
    (tmp_path / "coarse").mkdir()
    run_step(context, LowBitSettings(every_layer=True, ignored_layers=("0",)), tmp_path / "coarse")
    coarse = replace(context, source=result_in(tmp_path / "coarse"))
    rename = {"0.": "0.0.", "1.": "0.1.", "3.": "2."}
    _, model = run(coarse, tmp_path / "deep", factory="net.py:deeper", rename=rename)

    constraints = read_structure(tmp_path / "deep" / "structure.json").constraints
    assert {name: item["kind"] for name, item in constraints.items()} == {"2.weight": "int4"}
    assert max(len(torch.unique(row)) for row in model[2].weight) <= 15


@pytest.mark.parametrize("parameters", ["none", "matching"])
def test_transfer_leaves_constraints_behind_when_the_weights_of_a_structure_do_not_come(
    context: StepContext, tmp_path: Path, parameters: str
) -> None:
    (tmp_path / "coarse").mkdir()
    run_step(context, LowBitSettings(every_layer=True), tmp_path / "coarse")
    structure = tmp_path / "coarse" / "structure.json"
    run(context, tmp_path / "dense", structure=structure, parameters=parameters, seed=1)
    run(context, tmp_path / "both", structure=structure, weights="coarse/weights.safetensors")

    assert read_structure(tmp_path / "dense" / "structure.json").constraints == {}
    assert set(read_structure(tmp_path / "both" / "structure.json").constraints) == {"0.weight", "3.weight"}


def test_transfer_rebuilds_a_pruned_network_when_its_files_are_given(context: StepContext, tmp_path: Path) -> None:
    (tmp_path / "pruned").mkdir()
    run_step(context, PruneSettings(pruning_ratio=0.5), tmp_path / "pruned")
    pruned = context.build(result_in(tmp_path / "pruned"))
    structure = tmp_path / "pruned" / "structure.json"
    report, model = run(context, tmp_path / "both", structure=structure, weights="pruned/weights.safetensors")
    _, empty = run(context, tmp_path / "only", structure=structure, parameters="none", seed=1)

    assert report.matched_share == 1.0
    assert torch.equal(model[0].weight, pruned[0].weight)
    assert empty[0].weight.shape == pruned[0].weight.shape
    assert not torch.equal(empty[0].weight, pruned[0].weight)


def test_transfer_gives_the_same_bytes_when_run_twice(context: StepContext, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(context, tmp_path / name, arguments={"width": 12}, parameters="partial")

    for name in ("structure.json", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": "net.py:deeper"}, "0.0% of the new network's parameters found their place, expected 1.0%"),
        ({"arguments": {"classes": 5}, "min_matched": 0.0}, "answers in shapes [(1, 5)], the one before in [(1, 3)]"),
    ],
)
def test_transfer_refuses_when_the_networks_do_not_fit(
    context: StepContext, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(CompressionError) as caught:
        run(context, tmp_path / "other", **settings)
    assert message in str(caught.value)


def test_settings_refuse_when_nothing_would_change() -> None:
    with pytest.raises(RecipeError, match="needs a new network or other weights"):
        TransferSettings()
