from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from small_nets import build_small, prune_stage, rebuilding, small_net, step_context
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.allotment import rounded_width
from edgeopt.compress.chain import run_step
from edgeopt.compress.layers import count_macs, output_layers, traceable
from edgeopt.compress.prune import PruneReport
from edgeopt.compress.rebuild import apply_structure
from edgeopt.compress.structure import read_structure
from edgeopt.errors import CompressionError
from edgeopt.steps import PruneSettings

SHAPE = (1, 1, 8, 8)
IMAGE = (torch.zeros(SHAPE),)


class Residual(nn.Module):
    """A stem whose output meets itself again in a sum, a depthwise convolution, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 16, 1)
        self.classes = nn.Linear(16, 5)
        self.mask = nn.Conv2d(16, 2, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stem = self.stem(image).relu()
        body = self.point(self.depthwise(stem + self.branch(stem)).relu())
        return self.classes(body.mean(dim=(2, 3))), self.mask(body).sigmoid()


def prune(out_dir: Path, settings: PruneSettings, *, net: type[nn.Module] | None = None, round_to: int = 1):
    build = build_small if net is None else rebuilding(net, 1, 1, 8, 8)
    source = TorchModel(weights=None)
    torch.manual_seed(0)
    return build, *prune_stage(build, source, SHAPE, settings, round_to, out_dir)


def widths(report: PruneReport) -> dict[str, int]:
    return {layer.name: layer.channels_after for layer in report.layers}


def test_prune_stage_removes_half_the_channels_when_the_ratio_is_a_half(tmp_path: Path) -> None:
    build, artifact, report = prune(tmp_path, PruneSettings(pruning_ratio=0.5))

    assert widths(report) == {"0": 4, "4": 8, "9": 10}
    model = build(artifact)
    assert model[0].weight.shape == (4, 1, 3, 3)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["structure.json", "weights.safetensors"]


def test_run_step_reports_what_changed_when_channels_went(tmp_path: Path) -> None:
    context = step_context(build_small, *SHAPE)
    report, summary = run_step(context, PruneSettings(pruning_ratio=0.5), tmp_path)

    # Before: 8*9 + 2*8 + 16*8*9 + 16 + 64*10 + 10. After: 4*9 + 2*4 + 8*4*9 + 8 + 32*10 + 10.
    assert (report["before"]["num_parameters"], report["after"]["num_parameters"]) == (1906, 670)
    # Before: 64*72 + 16*1152 + 640. After: 64*36 + 16*288 + 320.
    assert (report["before"]["num_macs"], report["after"]["num_macs"]) == (23680, 7232)
    # Batch norm also has two float buffers a channel and one int64 counter.
    bytes_before, bytes_after = (report[side]["weights_bytes"] for side in ("before", "after"))
    assert (bytes_before, bytes_after) == (4 * (1906 + 16) + 8, 4 * (670 + 8) + 8)
    # Batch norm's bias begins with zeros.
    assert (report["before"]["num_nonzero"], report["after"]["num_nonzero"]) == (1906 - 8, 670 - 4)
    assert json.loads(json.dumps(report))["method"] == "prune"
    assert summary == "1,906 -> 670 parameters, 23,680 -> 7,232 MACs"


@pytest.mark.parametrize(("importance", "kept"), [("l1", [1, 2]), ("l2", [0, 1])])
def test_prune_stage_keeps_the_channels_with_the_largest_norm_when_ranked(
    tmp_path: Path, importance: str, kept: list[int]
) -> None:
    # What makes each channel; what uses them is alike. L1 norms: 3, 4, 3.6; squared L2 norms: 9, 8, 4.32.
    rows = torch.tensor([[3.0, 0.0, 0.0], [2.0, 2.0, 0.0], [1.2, 1.2, 1.2]])

    def net() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
        model[0].weight.data.copy_(rows)
        model[1].weight.data.fill_(0.01)
        return model

    build = rebuilding(net, 1, 3)
    settings = PruneSettings(pruning_ratio=0.3, importance=importance)  # type: ignore[arg-type]
    artifact, _ = prune_stage(build, TorchModel(), (1, 3), settings, 1, tmp_path)

    assert torch.equal(build(artifact)[0].weight, rows[kept])


def test_prune_stage_keeps_groups_and_outputs_whole_when_layers_are_coupled(tmp_path: Path) -> None:
    build, artifact, report = prune(tmp_path, PruneSettings(pruning_ratio=0.5), net=Residual)

    assert widths(report) == {"stem": 4, "branch": 4, "depthwise": 4, "point": 8, "classes": 5, "mask": 2}
    assert build(artifact).depthwise.groups == 4


def test_prune_stage_follows_the_layers_own_ratio_when_one_is_given(tmp_path: Path) -> None:
    settings = PruneSettings(pruning_ratio=0.5, pruning_ratios={"4": 0.75}, ignored_layers=("0",))

    assert widths(prune(tmp_path, settings)[2]) == {"0": 8, "4": 4, "9": 10}


def test_prune_stage_takes_from_the_weakest_layer_when_the_scope_is_global(tmp_path: Path) -> None:
    def net() -> nn.Module:
        model = small_net()
        for layer in (model[0], model[4], model[9]):
            layer.weight.data.fill_(0.1)
        model[4].weight.data[:6] = 0.01
        return model

    build = rebuilding(net, 1, 1, 8, 8)
    settings = PruneSettings(pruning_ratio=0.25, scope="global")  # 6 of 24 channels
    _, report = prune_stage(build, TorchModel(), SHAPE, settings, 1, tmp_path)

    assert widths(report) == {"0": 8, "4": 10, "9": 10}


def test_prune_stage_rounds_widths_when_the_target_wants_multiples(tmp_path: Path) -> None:
    # 8 * 0.4 = 3.2 rounds to 4, 16 * 0.4 = 6.4 to 8.
    assert widths(prune(tmp_path, PruneSettings(pruning_ratio=0.6), round_to=4)[2]) == {"0": 4, "4": 8, "9": 10}


def test_prune_stage_prefers_the_recipes_round_to_when_both_are_given(tmp_path: Path) -> None:
    settings = PruneSettings(pruning_ratio=0.6, round_to=1)

    assert widths(prune(tmp_path, settings, round_to=8)[2]) == {"0": 3, "4": 6, "9": 10}


@pytest.mark.parametrize(
    ("wanted", "num_channels", "round_to", "expected"),
    [(6, 16, 8, 8), (12, 16, 8, 16), (3, 16, 8, 8), (0, 16, 8, 8), (19, 20, 8, 16), (5, 6, 8, 6), (5, 9, 1, 5)],
)
def test_rounded_width_is_the_nearest_multiple_when_there_is_one(
    wanted: int, num_channels: int, round_to: int, expected: int
) -> None:
    assert rounded_width(wanted, num_channels, round_to) == expected


def test_prune_stage_adds_up_when_a_pruned_network_is_pruned_again(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    build, once, _ = prune(tmp_path / "once", PruneSettings(pruning_ratio=0.5), net=Residual)
    twice, report = prune_stage(build, once, SHAPE, PruneSettings(pruning_ratio=0.5), 1, tmp_path / "twice")

    assert widths(report) == {"stem": 2, "branch": 2, "depthwise": 2, "point": 4, "classes": 5, "mask": 2}
    assert build(twice).stem.weight.shape == (2, 1, 3, 3)


def test_prune_stage_writes_the_same_bytes_when_run_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        prune(tmp_path / name, PruneSettings(pruning_ratio=0.5), net=Residual)

    for name in ("structure.json", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_prune_stage_keeps_everything_when_the_ratio_is_zero(tmp_path: Path) -> None:
    report = prune(tmp_path, PruneSettings(pruning_ratio=0.0))[2]

    assert widths(report) == {"0": 8, "4": 16, "9": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PruneSettings(ignored_layers=("44",)), "no convolution or linear layer '44'\n  hint: did you mean '4'"),
        (PruneSettings(pruning_ratios={"2": 0.5}), "no convolution or linear layer '2'"),
        (PruneSettings(pruning_ratios={"9": 0.5}), "layer '9' makes an output"),
        (PruneSettings(ignored_layers=("0", "4")), "nothing to prune"),
        (PruneSettings(pruning_ratio=0.1, round_to=16), "nothing was pruned"),
    ],
)
def test_prune_stage_refuses_when_it_cannot_do_what_was_asked(
    tmp_path: Path, settings: PruneSettings, message: str
) -> None:
    with pytest.raises(CompressionError) as caught:
        prune(tmp_path, settings)
    assert message in str(caught.value)


def test_prune_stage_refuses_when_every_layer_makes_an_output(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="nothing to prune"):
        prune(tmp_path, PruneSettings(), net=lambda: nn.Conv2d(1, 4, 3))  # type: ignore[arg-type]


def test_prune_stage_refuses_when_a_weight_is_nan(tmp_path: Path) -> None:
    def net() -> nn.Module:
        model = small_net()
        model[4].weight.data[0] = math.nan
        return model

    with pytest.raises(CompressionError, match=r"before pruning: weight '4\.weight' has NaN"):
        prune(tmp_path, PruneSettings(), net=net)  # type: ignore[arg-type]


class Stubborn(nn.Module):
    """Its code says 8 channels where its layers may have fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.last = nn.Linear(8 * 64, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(image).reshape(-1, 8 * 64))


def test_prune_stage_names_the_layer_when_the_code_does_not_follow(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="layer 'body' cannot be run: shape"):
        prune(tmp_path, PruneSettings(), net=lambda: nn.Sequential(OrderedDict(body=Stubborn())))  # type: ignore[arg-type]
    assert not (tmp_path / "weights.safetensors").exists()


class Untraceable(nn.Module):
    """Runs, but asks for the value of a tensor, which torch.export refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        hidden = self.first(values)
        return self.last(hidden if hidden.sum() > 1000 else hidden.relu())


def test_prune_stage_refuses_when_the_result_cannot_be_exported(tmp_path: Path) -> None:
    build = rebuilding(Untraceable, 1, 4)
    with pytest.raises(CompressionError, match="cannot be exported"):
        prune_stage(build, TorchModel(), (1, 4), PruneSettings(), 1, tmp_path)


def test_output_layers_finds_both_heads_when_there_are_two() -> None:
    model = Residual()
    with traceable(model):
        assert output_layers(model, IMAGE) == {"classes", "mask"}


def test_output_layers_finds_both_summands_when_a_sum_is_the_output() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = self.first(values)
            return {"logits": (self.left(hidden) + self.right(hidden)).softmax(dim=1)}

    model = Sum()
    with traceable(model):
        assert output_layers(model, (torch.zeros(1, 4),)) == {"left", "right"}


def test_output_layers_finds_an_inner_layer_when_it_is_an_output_too() -> None:
    class Exit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            early = self.early(values)
            return early, self.late(early.relu())

    model = Exit()
    with traceable(model):
        assert output_layers(model, (torch.zeros(1, 4),)) == {"early", "late"}


def test_traceable_gives_back_modes_when_parameters_were_frozen() -> None:
    model = small_net()
    model[0].weight.requires_grad_(False)
    with traceable(model):
        assert model[0].weight.requires_grad
        assert not model.training

    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad
    assert model.training


def test_count_macs_counts_each_layer_kind_when_worked_by_hand() -> None:
    transposed = nn.ConvTranspose2d(2, 3, 2, stride=2)  # each of 8 * 8 inputs meets 2 * 3 * 4 weights

    assert count_macs(transposed, (torch.zeros(1, 2, 8, 8),)) == 64 * 24
    assert count_macs(nn.Conv1d(4, 4, 3, groups=2), (torch.zeros(1, 4, 10),)) == 8 * (4 * 2 * 3)
    assert count_macs(nn.Linear(5, 7), (torch.zeros(1, 6, 5),)) == 6 * 35


def structure_of(edits: str, version: int = 2) -> str:
    return f'{{"schema_version": {version}, "factory": null, "edits": {edits}, "constraints": {{}}}}'


def removing(layer: str, channel: int) -> str:
    removed = f'[{{"layer": "{layer}", "output": true, "channels": [{channel}]}}]'
    return f'[{{"kind": "remove_channels", "removed": {removed}}}]'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "does not hold a network's structure"),
        (structure_of("[]", version=1), "schema_version is 1, expected 2"),
        (structure_of("[{}]"), "an edit has no kind"),
        (structure_of('[{"kind": "grow"}]'), "an edit of kind 'grow', expected one of"),
        (structure_of('[{"kind": "remove_channels"}]'), "does not list removed channels"),
        (structure_of(removing("0", 8)), "layer '0' with 8"),
        (structure_of(removing("0", -1)), "layer '0' with 8"),
        (structure_of(removing("x", 0)), "layer 'x' with 0"),
    ],
)
def test_apply_structure_refuses_when_the_file_does_not_fit(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "structure.json"
    path.write_text(text)
    with pytest.raises(CompressionError) as caught:
        apply_structure(small_net(), read_structure(path), IMAGE)
    assert message in str(caught.value)
