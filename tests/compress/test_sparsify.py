from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_nets import build_small, interrupt_after, noisy_patterns, rebuilding, step_context
from tiny_project import ROOT, environment
from torch import nn
from torch.nn import functional

from edgeopt.artifacts import TorchModel
from edgeopt.compress.chain import run_step
from edgeopt.compress.constraints import constrained, holder_of
from edgeopt.compress.finetune import finetune
from edgeopt.compress.prune import prune
from edgeopt.compress.sparsify import SparsifyReport, Tightening, sparsify
from edgeopt.compress.step import result_in
from edgeopt.compress.structure import read_structure
from edgeopt.errors import CompressionError, RecipeError
from edgeopt.steps import FinetuneSettings, LowBitSettings, PruneSettings, ShareSettings, SparsifySettings
from edgeopt.training import TrainSettings

SHAPE = (1, 1, 8, 8)
DATA = noisy_patterns()
TRAINING = TrainSettings(epochs=4, batch_size=100, learning_rate=1e-2, threads=1)
GRADUAL = SparsifySettings(
    sparsity=0.8, schedule="gradual", ramp=(0.0, 0.5), num_updates=4, finetune=replace(TRAINING, weight_decay=0.1)
)


def one_layer(weight: list[list[float]]) -> Callable[[TorchModel], nn.Module]:
    """Return what builds images of 8 x 8 to as many logits as the weight has rows of four."""

    def net() -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(4), nn.Linear(4, len(weight), bias=False))
        model[2].weight.data.copy_(torch.tensor(weight))
        return model

    return rebuilding(net, *SHAPE)


def sparse(
    folder: Path, settings: SparsifySettings, build: Callable[[TorchModel], nn.Module] = build_small
) -> tuple[nn.Module, SparsifyReport]:
    torch.manual_seed(0)
    report = sparsify(step_context(build, *SHAPE, data=DATA), settings, folder)
    return build(result_in(folder)), report


def zeros_of(model: nn.Module, names: tuple[str, ...] = ("0", "4", "9")) -> dict[str, float]:
    weights = {name: model.get_parameter(f"{name}.weight") for name in names}
    return {name: 1 - int(weight.count_nonzero()) / weight.numel() for name, weight in weights.items()}


def test_sparsify_zeroes_the_smallest_when_ranked_by_magnitude(tmp_path: Path) -> None:
    build = one_layer([[0.1, -0.4, 0.3, 0.2], [-0.8, 0.5, -0.6, 0.7]])
    model, report = sparse(tmp_path, SparsifySettings(sparsity=0.5), build)

    assert torch.equal(model[2].weight, torch.tensor([[0.0, 0.0, 0.0, 0.0], [-0.8, 0.5, -0.6, 0.7]]))
    assert report.layers[0].num_zeros == 4
    assert read_structure(result_in(tmp_path).structure).constraints == {"2.weight": {"kind": "sparse"}}
    assert report.summary == "50.0% zeros in 1 layers"


def test_sparsify_gives_layers_their_own_share_when_the_recipe_does(tmp_path: Path) -> None:
    settings = SparsifySettings(sparsity=0.5, sparsities={"4": 0.75}, ignored_layers=("9",))
    assert zeros_of(sparse(tmp_path, settings)[0]) == {"0": 0.5, "4": 0.75, "9": 0.0}
    assert zeros_of(sparse(tmp_path, SparsifySettings(sparsities={"4": 0.25}))[0]) == {"0": 0.0, "4": 0.25, "9": 0.0}


def test_sparsify_takes_more_from_small_weights_when_the_scope_is_global(tmp_path: Path) -> None:
    model, report = sparse(tmp_path, SparsifySettings(sparsity=0.5, scope="global"))
    zeros, total = (sum(getattr(layer, key) for layer in report.layers) for key in ("num_zeros", "num_weights"))

    assert zeros == total // 2
    largest_gone = max(float(before[after == 0].abs().max()) for before, after in _pairs(model))
    smallest_kept = min(float(after[after != 0].abs().min()) for _, after in _pairs(model))
    assert largest_gone <= smallest_kept


def _pairs(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    dense = build_small(TorchModel())
    names = ("0.weight", "4.weight", "9.weight")
    return [(dense.get_parameter(name).detach(), model.get_parameter(name).detach()) for name in names]


def test_sparsify_zeroes_what_is_below_the_threshold_when_there_is_one(tmp_path: Path) -> None:
    build = one_layer([[0.1, -0.4, 0.3, 0.2]])
    model, _ = sparse(tmp_path, SparsifySettings(threshold=0.25), build)
    assert (model[2].weight != 0).tolist() == [[False, True, True, False]]


def test_sparsify_draws_weights_when_the_importance_is_random(tmp_path: Path) -> None:
    settings = SparsifySettings(sparsity=0.5, importance="random")
    masks = [sparse(tmp_path, replace(settings, seed=seed))[0][4].weight != 0 for seed in (0, 0, 1)]

    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_sparsify_ranks_by_weight_times_gradient_when_the_importance_is_gradient(tmp_path: Path) -> None:
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(3))
    build = one_layer(rows.tolist())
    model, _ = sparse(tmp_path, SparsifySettings(sparsity=0.5, importance="gradient", num_samples=300), build)

    # By hand: dL/dW of the mean cross entropy is (softmax - onehot)^T x / N.
    x = functional.adaptive_avg_pool1d(torch.from_numpy(DATA[0].images[:300]).flatten(1), 4)
    wrong = (x @ rows.T).softmax(dim=1) - functional.one_hot(torch.from_numpy(DATA[0].labels[:300]), 10)
    scores = (rows * (wrong.T @ x)).abs()
    assert torch.equal(model[2].weight != 0, scores > scores.flatten().sort().values[19])


def test_sparsify_keeps_two_of_four_inputs_when_the_pattern_is_asked(tmp_path: Path) -> None:
    model, report = sparse(tmp_path, SparsifySettings(pattern="2:4"))

    # The first convolution has one input channel: no four.
    assert report.left_dense == ("0",)
    convolution = (model[4].weight != 0).reshape(16, 2, 4, 3, 3).sum(dim=2)
    assert convolution.unique().tolist() == [2]
    assert (model[9].weight != 0).reshape(10, 16, 4).sum(dim=2).unique().tolist() == [2]
    constraint = read_structure(result_in(tmp_path).structure).constraints["4.weight"]
    assert constraint == {"kind": "sparse", "pattern": "2:4"}


@pytest.mark.parametrize("importance", ["l1", "movement"])
def test_sparsify_ends_with_what_was_asked_when_the_schedule_is_gradual(tmp_path: Path, importance: str) -> None:
    model, report = sparse(tmp_path, replace(GRADUAL, importance=importance))

    assert zeros_of(model) == pytest.approx({"0": 58 / 72, "4": 922 / 1152, "9": 0.8})
    assert report.training is not None
    # The mask is tight after half of the training: the best epoch is one behind that.
    assert len(report.training.validation_scores) == 3
    assert report.training.best_epoch >= 2
    constraints = read_structure(result_in(tmp_path).structure).constraints
    assert constraints["4.weight"] == {"kind": "sparse"}


def test_movement_keeps_what_training_drives_away_from_zero_when_worked_by_hand() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, 1.0, -0.1]]))
    settings = replace(GRADUAL, sparsity=0.34, importance="movement", ramp=(0.5, 1.0), num_updates=1)
    with constrained(layer, {"weight": {"kind": "sparse", "scores": True}}):
        holder, weight = holder_of(layer, "weight")
        tightening = Tightening(layer, {"weight": layer.weight.detach()}, settings)
        # A step against these gradients: the first grows, the second shrinks, the third, the smallest, grows.
        weight.grad = torch.tensor([[-1.0, 1.0, 2.0]])
        tightening.on_step(0.4)
        assert holder.scores.tolist() == [pytest.approx([1.0, -1.0, 0.2])]
        assert bool(holder.mask.all())
        tightening.on_step(1.0)
        assert holder.mask.tolist() == [[True, False, True]]


LONGER = replace(GRADUAL, finetune=replace(TRAINING, epochs=12))
ELSEWHERE = """
import logging, sys
from pathlib import Path
from test_sparsify import LONGER, sparse
logging.basicConfig(level="INFO")
sparse(Path(sys.argv[1]), LONGER)
"""


def test_sparsify_goes_on_bit_for_bit_when_it_was_killed(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    here = Path(__file__).parent
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, ROOT)))}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "broken")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(paths)) as process:
        assert process.stderr is not None
        assert any("sparsify epoch 2/" in line for line in process.stderr)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    sparse(tmp_path / "whole", LONGER)
    sparse(tmp_path / "broken", LONGER)

    whole, broken = (tmp_path / name / "weights.safetensors" for name in ("whole", "broken"))
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("importance", ["l1", "movement"])
def test_sparsify_goes_on_bit_for_bit_when_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importance: str
) -> None:
    settings = replace(GRADUAL, importance=importance)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole, _ = sparse(tmp_path / "whole", settings)
    with monkeypatch.context() as patched:
        interrupt_after(4, patched)  # structure and weights of the start, two checkpoints
        with pytest.raises(KeyboardInterrupt):
            sparse(tmp_path / "broken", settings)
    assert (tmp_path / "broken/checkpoint.pt").exists()
    sparse(tmp_path / "broken", settings)

    for file in ("structure.json", "weights.safetensors"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not (tmp_path / "broken/checkpoint.pt").exists()
    assert zeros_of(whole)["9"] == pytest.approx(0.8)


def test_zeros_stay_when_the_network_is_trained_and_pruned_afterwards(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("sparsify", "finetune", "prune", "again")]
    for folder in folders:
        folder.mkdir()
    sparse(folders[0], SparsifySettings(sparsity=0.75))
    before = build_small(result_in(folders[0]))
    settings = FinetuneSettings(epochs=1, batch_size=50, learning_rate=1e-2, threads=1, weight_decay=0.1)
    finetune(step_context(build_small, *SHAPE, source=result_in(folders[0]), data=DATA), settings, folders[1])
    trained = build_small(result_in(folders[1]))
    assert torch.equal(before[4].weight == 0, trained[4].weight == 0)
    assert not torch.equal(before[4].weight, trained[4].weight)

    prune(step_context(build_small, *SHAPE, source=result_in(folders[1])), PruneSettings(pruning_ratio=0.5), folders[2])
    narrow = build_small(result_in(folders[2]))
    finetune(step_context(build_small, *SHAPE, source=result_in(folders[2]), data=DATA), settings, folders[3])
    again = build_small(result_in(folders[3]))
    assert again[4].weight.shape[0] == 8
    assert torch.equal(narrow[4].weight == 0, again[4].weight == 0)
    assert int((again[4].weight == 0).sum()) > 100


@pytest.mark.parametrize("first", [SparsifySettings(sparsity=0.9), SparsifySettings(pattern="2:4")], ids=["90", "2:4"])
@pytest.mark.parametrize("importance", ["l1", "movement"])
def test_zeros_stay_when_fewer_are_asked_gradually(tmp_path: Path, first: SparsifySettings, importance: str) -> None:
    (tmp_path / "gradual").mkdir()
    before, _ = sparse(tmp_path, first)
    context = step_context(build_small, *SHAPE, source=result_in(tmp_path), data=DATA)
    sparsify(context, replace(GRADUAL, sparsity=0.3, importance=importance), tmp_path / "gradual")  # type: ignore[arg-type]
    after = build_small(result_in(tmp_path / "gradual"))
    for name in ("0", "4", "9"):
        weight = before.get_parameter(f"{name}.weight")
        assert not after.get_parameter(f"{name}.weight")[weight == 0].any()
    assert not torch.equal(before[9].weight, after[9].weight)


def test_a_pattern_is_remembered_when_other_steps_follow(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("pattern", "more", "shared", "coarse", "pruned")]
    for folder in folders:
        folder.mkdir()
    sparse(folders[0], SparsifySettings(pattern="2:4"))
    follow = (SparsifySettings(sparsity=0.6), ShareSettings(conv_values=8, linear_values=8), LowBitSettings())
    source = result_in(folders[0])
    for step, folder in zip((follow[0], follow[1]), folders[1:3], strict=True):
        run_step(step_context(build_small, *SHAPE, source=source, data=DATA), step, folder)
        source = result_in(folder)
        assert read_structure(source.structure).constraints["4.weight"]["pattern"] == "2:4"
    run_step(step_context(build_small, *SHAPE, source=result_in(folders[0])), follow[2], folders[3])
    assert read_structure(result_in(folders[3]).structure).constraints["4.weight"]["pattern"] == "2:4"
    with pytest.raises(CompressionError, match=r"prune would make new values of weight '4\.weight'"):
        prune(step_context(build_small, *SHAPE, source=source), PruneSettings(pruning_ratio=0.5), folders[4])


class WithAuxiliary(nn.Module):
    """Has a head that no answer uses, and a layer that does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        self.net[1].weight.requires_grad_(False)
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.net(image)
        return answers


@pytest.mark.parametrize("importance", ["gradient", "movement"])
def test_sparsify_lives_with_layers_that_are_frozen_or_not_used(tmp_path: Path, importance: str) -> None:
    build = rebuilding(WithAuxiliary, *SHAPE)
    settings = SparsifySettings(sparsity=0.5, importance="gradient", finetune=TRAINING)
    if importance == "movement":
        settings = replace(GRADUAL, sparsity=0.5, importance="movement")
    model, _ = sparse(tmp_path, settings, build)
    assert zeros_of(model, ("net.1", "net.3", "head")) == pytest.approx(dict.fromkeys(("net.1", "net.3", "head"), 0.5))


def test_steps_refuse_a_layer_that_computes_its_weight(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)))

    context = step_context(rebuilding(net, *SHAPE), *SHAPE, data=DATA)
    with pytest.raises(CompressionError, match="layer '1' computes its weight while it runs") as raised:
        run_step(context, SparsifySettings(sparsity=0.5), tmp_path)
    assert "remove_parametrizations" in str(raised.value.hint)
    run_step(context, FinetuneSettings(epochs=1, threads=1), tmp_path)


def test_sparsify_counts_zeros_that_are_there_when_it_is_done_twice(tmp_path: Path) -> None:
    (tmp_path / "twice").mkdir()
    sparse(tmp_path, SparsifySettings(sparsity=0.5))
    context = step_context(build_small, *SHAPE, source=result_in(tmp_path))
    report, summary = run_step(context, SparsifySettings(sparsity=0.75), tmp_path / "twice")

    assert zeros_of(build_small(result_in(tmp_path / "twice"))) == {"0": 0.75, "4": 0.75, "9": 0.75}
    assert report["before"]["num_macs"] == report["after"]["num_macs"]
    assert "that are not zero; 75.0% zeros in 3 layers" in summary


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "expected one of 'sparsity'"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "expected one of 'sparsity'"),
        ({"sparsity": 1.0}, r"a sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsities": {"4": -0.1}}, r"a sparsity must be in \[0, 1\), got -0.1"),
        ({"threshold": 0.0}, "'threshold' is a magnitude above 0"),
        ({"sparsity": 0.5, "importance": "movement"}, "measured while the mask tightens"),
        ({"sparsity": 0.5, "schedule": "gradual"}, "needs a training"),
        ({"sparsity": 0.5, "ramp": (0.5, 0.5)}, "'ramp' is the part of the training"),
        ({"sparsity": 0.5, "num_updates": 0}, "must be at least 1"),
    ],
)
def test_settings_are_refused_when_they_make_no_sense(settings: dict[str, object], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        SparsifySettings(**settings)  # type: ignore[arg-type]


def test_sparsify_refuses_a_layer_that_is_not_there_and_a_choice_that_is_empty(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="no convolution or linear layer '5'"):
        sparse(tmp_path, SparsifySettings(sparsities={"5": 0.5}))
    with pytest.raises(CompressionError, match="no layer is left"):
        sparse(tmp_path, SparsifySettings(sparsity=0.5, ignored_layers=("0", "4", "9")))
