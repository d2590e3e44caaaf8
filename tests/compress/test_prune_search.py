"""Budgets, sensitivity scans and iterations: how a ratio is found, and what happens on the way there."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_nets import build_small, interrupt_after, noisy_patterns, rebuilding, small_net, step_context
from test_importance import Mixed
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.allotment import Population
from edgeopt.compress.chain import run_step
from edgeopt.compress.groups import Group
from edgeopt.compress.layers import count_macs
from edgeopt.compress.prune import PruneReport, prune
from edgeopt.compress.prune_budget import int8_bytes
from edgeopt.compress.sensitivity import Damage
from edgeopt.compress.step import StepContext, hand_on, result_in
from edgeopt.compress.structure import Structure
from edgeopt.errors import CompressionError, DataError, RecipeError
from edgeopt.steps import PruneSettings
from edgeopt.steps.prune import PruneBudget
from edgeopt.training import TrainSettings

SHAPE = (1, 1, 8, 8)
IMAGE = (torch.zeros(SHAPE),)
FINETUNE = TrainSettings(epochs=1, threads=1)
MACS = 23680  # of the small net: 64*72 + 16*1152 + 640


def context(**changes: object) -> StepContext:
    torch.manual_seed(0)
    return replace(step_context(build_small, *SHAPE, data=noisy_patterns()), **changes)  # type: ignore[arg-type]


def widths(report: PruneReport) -> dict[str, int]:
    return {layer.name: layer.channels_after for layer in report.layers}


@pytest.mark.parametrize("limit", [0.4, 0.4 * MACS])
def test_prune_finds_the_smallest_ratio_when_the_macs_have_a_budget(tmp_path: Path, limit: float) -> None:
    report = prune(context(), PruneSettings(budget=PruneBudget(num_macs=limit)), tmp_path)

    def macs(first: int, second: int) -> int:
        return 64 * 9 * first + 16 * 9 * first * second + 40 * second

    # By ratios from 0 up, the widths are (8, 16), (8, 15), (7, 15) ... (5, 10), (5, 9), (4, 9).
    assert widths(report) == {"0": 4, "4": 9, "9": 10}
    assert macs(4, 9) <= 0.4 * MACS < macs(5, 9)
    assert report.budget is not None
    assert (report.budget.before, report.budget.after, report.budget.limit) == (MACS, macs(4, 9), 0.4 * MACS)
    assert count_macs(build_small(result_in(tmp_path)), IMAGE) == macs(4, 9)
    assert "for num_macs 2.368e+04" in report.summary


def test_prune_keeps_a_budget_of_bytes_when_int8_holds_the_weights(tmp_path: Path) -> None:
    # Weights 72 + 1152 + 640, biases of 8 + 16 + 10 channels; batch norm is folded.
    assert int8_bytes(small_net()) == 72 + 1152 + 640 + 4 * 34

    report = prune(context(), PruneSettings(budget=PruneBudget(model_bytes=1000)), tmp_path)
    assert report.budget is not None
    assert report.budget.after == int8_bytes(build_small(result_in(tmp_path))) <= 1000
    assert report.budget.after > 900


def test_prune_measures_candidates_when_the_latency_has_a_budget(tmp_path: Path) -> None:
    asked = []

    def relative_latency(candidate: nn.Module, whole: nn.Module, target: str) -> float:
        asked.append(target)
        return 0.1 + 0.9 * count_macs(candidate, IMAGE) / count_macs(whole, IMAGE)

    settings = PruneSettings(budget=PruneBudget(latency=0.5), target="arm64")
    report = prune(context(relative_latency=relative_latency), settings, tmp_path)

    assert set(asked) == {"arm64"}
    assert 5 <= len(asked) <= 10
    assert report.budget is not None
    assert 0.4 < report.budget.after <= 0.5
    assert (report.budget.before, report.budget.limit) == (1.0, 0.5)


def test_prune_says_what_can_be_reached_when_a_budget_cannot(tmp_path: Path) -> None:
    settings = PruneSettings(budget=PruneBudget(num_macs=0.01), round_to=4)
    # With widths (4, 4): 64*36 + 16*144 + 160.
    with pytest.raises(CompressionError, match=r"236\.8 cannot be reached.*4,768 are left"):
        prune(context(), settings, tmp_path)


def test_prune_refuses_when_nothing_can_measure_a_latency(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="a latency budget needs a recipe"):
        prune(context(), PruneSettings(budget=PruneBudget(latency=0.5), target="arm64"), tmp_path)


def test_prune_takes_nothing_when_the_budget_is_kept_already(tmp_path: Path) -> None:
    report = prune(context(), PruneSettings(budget=PruneBudget(num_macs=1_000_000)), tmp_path)

    assert widths(report) == {"0": 8, "4": 16, "9": 10}


IMPORTANCES = ["l1", "l2", "outgoing_l1", "taylor", "hessian", "fpgm", "lamp", "random"]


@pytest.mark.parametrize(("importance", "scope"), [*((name, "local") for name in IMPORTANCES), ("lamp", "global")])
def test_prune_keeps_coupled_layers_in_step_when_any_importance_ranks(
    tmp_path: Path, importance: str, scope: str
) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        model = Mixed()
        model.last = nn.Linear(6 * 256, 10)  # of 8 x 8 images
        return model

    build = rebuilding(net, *SHAPE)
    settings = PruneSettings(importance=importance, scope=scope, num_samples=8, threads=1)  # type: ignore[arg-type]
    report = prune(step_context(build, *SHAPE, data=noisy_patterns()), settings, tmp_path)
    found, model = widths(report), build(result_in(tmp_path))

    assert found["stem"] == found["branch"] == model.branch.groups
    assert model.norm.num_features == found["left"] + found["right"] == model.blocks.in_channels
    assert found["blocks"] % 2 == found["grouped"] % 2 == 0
    assert (model.grow.in_channels, model.last.in_features) == (found["grouped"], 256 * found["grow"])
    if scope == "local":
        assert list(found.values()) == [4, 4, 2, 3, 6, 4, 3, 10]
    else:  # the channels of the two convolutions with blocks go in pairs: of 34 units, half go
        pairs = found["blocks"] // 2 + found["grouped"] // 2
        assert pairs + sum(found[name] for name in ("stem", "left", "right", "grow")) == 17


def test_prune_writes_the_same_bytes_when_the_samples_come_in_another_order(tmp_path: Path) -> None:
    train_set, held_out = noisy_patterns()
    order = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(3)).numpy()
    shuffled = replace(train_set, images=train_set.images[order], labels=train_set.labels[order])  # type: ignore[index]
    for name, data in (("a", train_set), ("b", shuffled)):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        settings = PruneSettings(importance="taylor", scope="sensitivity", num_samples=16, threads=1)
        prune(step_context(build_small, *SHAPE, data=(data, held_out)), settings, tmp_path / name)

    assert (tmp_path / "a/weights.safetensors").read_bytes() == (tmp_path / "b/weights.safetensors").read_bytes()


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_prune_refuses_when_samples_have_no_labels(tmp_path: Path, importance: str) -> None:
    data = replace(noisy_patterns()[0], labels=None)
    with pytest.raises(
        DataError, match=f"importance = '{importance}': train: sample 'sample 0' has no label"
    ) as caught:
        prune(context(open_split=lambda _split: data), PruneSettings(importance=importance), tmp_path)  # type: ignore[arg-type]
    assert "look at no samples" in str(caught.value.hint)


def test_scan_needs_no_labels_when_agreement_is_enough(tmp_path: Path) -> None:
    data = replace(noisy_patterns()[0], labels=None)
    settings = PruneSettings(scope="sensitivity", num_samples=16, threads=1)
    report = prune(context(open_split=lambda _split: data), settings, tmp_path)

    assert all(row.accuracy is None and 0 <= row.agreement <= 1 for row in report.scan)


@pytest.mark.parametrize(
    ("constraint", "refused"),
    [({"kind": "sparse"}, False), ({"kind": "sparse", "pattern": "2:4"}, True), ({"kind": "int4"}, True)],
)
def test_prune_refuses_when_it_would_undo_an_earlier_step(
    tmp_path: Path, constraint: dict[str, str], *, refused: bool
) -> None:
    before = hand_on(small_net(), Structure(constraints={"4.weight": constraint}), tmp_path)
    settings = PruneSettings(ignored_layers=("0",))
    with pytest.raises(CompressionError, match=r"4\.weight") if refused else nullcontext():
        prune(step_context(build_small, *SHAPE, source=before), settings, tmp_path)


def dull_second_layer() -> nn.Module:
    """Return the small net with 12 of the 16 channels of its second layer hardly used."""
    torch.manual_seed(0)
    model = small_net().eval()
    model[9].weight.data.view(10, 16, 4)[:, 4:] *= 1e-4
    return model


def test_prune_takes_from_the_layer_that_costs_least_when_it_was_scanned(tmp_path: Path) -> None:
    build = rebuilding(dull_second_layer, *SHAPE)
    settings = PruneSettings(
        pruning_ratio=0.5, scope="sensitivity", importance="outgoing_l1", num_samples=64, threads=1
    )
    report = prune(step_context(build, *SHAPE, data=noisy_patterns()), settings, tmp_path)

    # 12 of 24 channels go: hardly any from the layer of which each channel counts.
    assert widths(report)["4"] <= 5
    assert widths(report)["0"] >= 7
    assert [(row.layer, row.ratio) for row in report.scan] == [
        (layer, ratio) for layer in ("0", "4") for ratio in (0.25, 0.5, 0.75, 0.9)
    ]
    first, second = report.scan[1], report.scan[5]
    assert first.divergence > 100 * second.divergence
    assert second.agreement == 1.0
    assert second.accuracy is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["structure.json", "weights.safetensors"]


def test_ratio_at_interpolates_when_the_limit_is_between_two_ratios() -> None:
    damage = Damage((0.0, 0.5, 1.0), (0.0, 2.0, 4.0))

    assert [damage.ratio_at(limit) for limit in (0, 1, 2, 3, 9)] == [0, 0.25, 0.5, 0.75, 1.0]


def test_kept_makes_the_damage_even_when_groups_differ() -> None:
    groups = [Group(name, 100, torch.arange(100)[:, None], ()) for name in "ab"]
    scores = [torch.rand(100, dtype=torch.float64) for _ in groups]
    damage = [Damage((0.0, 0.9), (0.0, 0.9)), Damage((0.0, 0.9), (0.0, 2.7))]
    population = Population(groups, scores, [100, 100], [None, None], 1, damage)

    # 0.6 of the one and 0.2 of the other cost 0.6 each, and are 80 of 200.
    assert population.kept(0.4, 1.0, "sensitivity") == [40, 80]


def test_scan_goes_on_where_it_was_killed_when_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PruneSettings(scope="sensitivity", num_samples=16, threads=1)
    (tmp_path / "left alone").mkdir()
    expected = prune(context(), settings, tmp_path / "left alone")
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            prune(context(), settings, tmp_path)
    assert len(json.loads((tmp_path / "scan.json").read_text())["rows"]) == 3

    saved = json.loads((tmp_path / "scan.json").read_text())
    saved["rows"][0]["agreement"] = 0.125  # a mark: it is not measured again
    (tmp_path / "scan.json").write_text(json.dumps(saved))
    report = prune(context(), settings, tmp_path)

    assert report.scan[0].agreement == 0.125
    assert report.scan[1:] == expected.scan[1:]
    assert (tmp_path / "weights.safetensors").read_bytes() == (tmp_path / "left alone/weights.safetensors").read_bytes()


def test_prune_trains_between_iterations_when_there_are_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PruneSettings(pruning_ratio=0.6, iterations=3, finetune=FINETUNE)
    (tmp_path / "left alone").mkdir()
    report = prune(context(), settings, tmp_path / "left alone")

    assert [iteration.pruning_ratio for iteration in report.iterations] == pytest.approx([0.2, 0.4, 0.6])
    assert report.iterations[0].validation_score is not None
    assert report.iterations[2].validation_score is None
    assert widths(report) == {"0": 3, "4": 6, "9": 10}  # 0.4 * 8 and 0.4 * 16, as in one shot
    assert sorted(path.name for path in (tmp_path / "left alone").iterdir()) == [
        "structure.json",
        "weights.safetensors",
    ]

    # One iteration is four files: structure and weights, pruned and trained, and a checkpoint for its epoch.
    with monkeypatch.context() as patch:
        interrupt_after(7, patch)
        with pytest.raises(KeyboardInterrupt):
            prune(context(), settings, tmp_path)
    assert (tmp_path / "iteration-1/iteration.json").is_file()
    assert prune(context(), settings, tmp_path) == report
    for name in ("structure.json", "weights.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "left alone" / name).read_bytes()


def test_prune_nears_the_budget_step_by_step_when_there_are_iterations(tmp_path: Path) -> None:
    settings = PruneSettings(budget=PruneBudget(num_macs=0.4), iterations=2, finetune=FINETUNE)
    report = prune(context(), settings, tmp_path)

    assert widths(report) == {"0": 4, "4": 9, "9": 10}
    assert 0 < report.iterations[0].pruning_ratio < report.iterations[1].pruning_ratio


def test_run_step_reports_what_a_json_file_can_hold_when_everything_is_asked_for(tmp_path: Path) -> None:
    settings = PruneSettings(
        budget=PruneBudget(num_macs=0.5),
        scope="sensitivity",
        iterations=2,
        finetune=FINETUNE,
        num_samples=16,
        threads=1,
    )
    report, summary = run_step(context(), settings, tmp_path)

    assert json.loads(json.dumps(report)) == json.loads(json.dumps(report, allow_nan=False))
    assert report["after"]["num_macs"] <= MACS / 2
    assert "ratio" in summary


def test_prune_refuses_when_layers_of_one_group_are_given_two_ratios(tmp_path: Path) -> None:
    build = rebuilding(
        lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 3, 1)), *SHAPE
    )
    settings = PruneSettings(pruning_ratios={"0": 0.5, "1": 0.25})
    with pytest.raises(CompressionError, match="lose their channels together, got the ratios"):
        prune(step_context(build, *SHAPE, source=TorchModel()), settings, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_ratio": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"pruning_ratio": -0.1}, r"in \[0, 1\), got -0.1"),
        ({"scan_ratios": (0.5, 0.25)}, "must rise"),
        ({"scan_ratios": ()}, "must rise"),
        ({"num_samples": 0}, "'num_samples' must be at least 1"),
        ({"iterations": 2}, "nothing says how to train"),
        ({"finetune": TrainSettings()}, "there is only one"),
        ({"iterations": 2, "finetune": TrainSettings(devices=2)}, "one process trains"),
        ({"target": "arm64"}, "go together"),
        ({"budget": PruneBudget(latency=0.5)}, "go together"),
        ({"budget": PruneBudget(num_macs=0.5), "pruning_ratio": 0.5}, "leave one"),
    ],
)
def test_settings_refuse_when_they_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        PruneSettings(**settings)  # type: ignore[arg-type]
    assert any(part in str(caught.value) for part in (message, message.replace("\\", "")))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "got none"),
        ({"num_macs": 0.5, "latency": 0.5}, "got num_macs, latency"),
        ({"num_macs": 0}, "must be above 0"),
        ({"latency": 1.5}, "share of the unpruned"),
    ],
)
def test_budgets_refuse_when_they_make_no_sense(budget: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PruneBudget(**budget)
