from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import Build, build_small, interrupt_after, noisy_patterns, rebuilding, step_context, train_stage
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.average import Average
from edgeopt.compress.batch_norm import add_penalty
from edgeopt.compress.batches import flip_images
from edgeopt.compress.optimizers import make_optimizer
from edgeopt.compress.parallel import clip_gradients, linear_plan
from edgeopt.compress.schedules import make_schedule
from edgeopt.compress.train import TrainReport, train
from edgeopt.errors import CompressionError, ExportError, RecipeError
from edgeopt.export import export_torch
from edgeopt.samples import Sample
from edgeopt.settings import ExportSettings, InputSettings, ModelSettings
from edgeopt.steps import PruneSettings
from edgeopt.training import TrainSettings, trainings_in, wherever

SETTINGS = TrainSettings(epochs=3, batch_size=64, learning_rate=1e-2, threads=1, validation_share=0.2)


def trained(folder: Path, settings: TrainSettings, build: Build = build_small) -> tuple[dict, TrainReport]:
    folder.mkdir(exist_ok=True)
    artifact, report = train_stage(build, TorchModel(), *noisy_patterns(), settings, folder)
    return build(artifact).state_dict(), report


def plain_net() -> nn.Module:
    """Return a network without batch norm and dropout: what it learns does not depend on how batches are cut."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


build_plain = rebuilding(plain_net, 1, 1, 8, 8)


# ---------------------------------------------------------------- exact resume


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, optimizer="sgd", nesterov=True, warmup_epochs=2, ema_decay=0.9, flip=True, patience=2),
        replace(SETTINGS, optimizer="rmsprop", schedule="one_cycle", accumulate=3, max_gradient_norm=0.1),
        replace(SETTINGS, optimizer="adagrad", schedule="step", warmup_epochs=1, precision="bf16-mixed"),
    ],
    ids=lambda settings: settings.optimizer,
)
def test_train_gives_the_same_weights_when_interrupted_with_every_option(
    tmp_path: Path, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, report = trained(tmp_path / "whole", settings)
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "again", settings)
    monkeypatch.undo()
    with caplog.at_level(logging.INFO, "edgeopt"):
        weights, resumed = trained(tmp_path / "again", settings)

    assert "goes on after epoch 2" in caplog.text
    assert resumed == report
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


# ---------------------------------------------------------------- accumulation, clipping, precision


def test_train_learns_the_same_when_a_batch_is_computed_in_parts(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole", replace(SETTINGS, optimizer="sgd"), build_plain)
    parts, report = trained(tmp_path / "parts", replace(SETTINGS, optimizer="sgd", accumulate=5), build_plain)

    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)
    assert report.losses[-1] < report.losses[0]


def test_clip_gradients_scales_as_torch_does_when_they_are_too_long() -> None:
    ours, theirs = (nn.Linear(3, 2) for _ in range(2))
    for layer in (ours, theirs):
        for number, parameter in enumerate(layer.parameters(), start=1):
            parameter.grad = torch.full_like(parameter, float(number))
    clip_gradients(ours, 1.5)
    nn.utils.clip_grad_norm_(theirs.parameters(), 1.5)

    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    before = ours.weight.grad.clone()
    clip_gradients(ours, 2.0)  # shorter than that already
    assert torch.equal(ours.weight.grad, before)


def test_add_penalty_adds_the_signs_of_factors_when_worked_by_hand() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(2, affine=False), nn.Linear(3, 1))
    net[0].weight.data = torch.tensor([2.0, 0.0, -0.5])
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    add_penalty(net, 0.25)
    assert net[0].weight.grad.tolist() == [1.25, 1.0, 0.75]
    others = (net[0].bias, net[2].weight, net[2].bias)
    assert all(bool((parameter.grad == 1).all()) for parameter in others)


def test_train_draws_the_factors_of_batch_norms_to_zero_when_they_are_penalised(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=6)
    free, _ = trained(tmp_path / "free", settings)
    drawn, report = trained(tmp_path / "drawn", replace(settings, bn_penalty=0.05))
    factors = [name.replace("running_var", "weight") for name in free if name.endswith("running_var")]
    assert factors
    assert all(drawn[name].abs().mean() < 0.9 * free[name].abs().mean() for name in factors)
    assert report.held_out_score > 0.5


def test_train_computes_in_bfloat16_and_keeps_float32_weights_when_asked(tmp_path: Path) -> None:
    seen = []

    class Watching(nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            answer = super().forward(values)
            seen.append((self.training, answer.dtype, self.weight.dtype))
            return answer

    build = rebuilding(lambda: nn.Sequential(nn.Flatten(), Watching(64, 10)), 1, 1, 8, 8)
    weights, report = trained(tmp_path, replace(SETTINGS, precision="bf16-mixed", epochs=6), build)

    assert set(seen) == {(True, torch.bfloat16, torch.float32), (False, torch.float32, torch.float32)}
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert report.held_out_score > 0.5  # one in ten by guessing


class Diverging(nn.Module):
    """Answers NaN from its twelfth training pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain_net()
        self.passes = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        logits: torch.Tensor = self.net(image)
        return logits * math.nan if self.passes > 11 else logits


def test_train_stops_within_the_step_when_a_part_of_the_batch_is_nan(tmp_path: Path) -> None:
    # 320 samples are 5 steps of 2 parts: pass 12 is the second part of the first step of epoch 2.
    settings = replace(SETTINGS, accumulate=2, ema_decay=0.9, precision="bf16-mixed")
    with pytest.raises(CompressionError, match="epoch 2, step 1: the loss is nan; the checkpoint of epoch 1 is kept"):
        trained(tmp_path, settings, lambda _: Diverging())
    assert (tmp_path / "checkpoint.pt").exists()


# ---------------------------------------------------------------- averaged weights


def test_average_follows_its_formula_when_updated() -> None:
    layer = nn.BatchNorm1d(1)
    average = Average(layer, 0.5)
    expected = 1.0  # batch norm's first weight
    for step, weight in enumerate([2.0, 4.0, 8.0, 16.0]):
        with torch.no_grad():
            layer.weight.fill_(weight)
            layer.num_batches_tracked.fill_(step + 1)
            layer.running_var.fill_(weight)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight

    assert average.weights["weight"].item() == pytest.approx(expected)
    assert average.weights["running_var"].item() == pytest.approx(expected)
    assert average.weights["num_batches_tracked"].item() == 4


def test_train_ships_the_averaged_weights_when_asked(tmp_path: Path) -> None:
    settings = replace(SETTINGS, ema_decay=0.98, epochs=5, schedule="constant")
    raw, _ = trained(tmp_path / "raw", replace(settings, ema_decay=None))
    averaged, report = trained(tmp_path / "averaged", settings)

    assert not torch.equal(raw["0.weight"], averaged["0.weight"])
    assert not torch.equal(raw["1.running_var"], averaged["1.running_var"])
    assert report.validation_scores[report.best_epoch - 1] == max(report.validation_scores)
    assert report.held_out_score > 0.5


# ---------------------------------------------------------------- optimizers, schedules, augmentation


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adagrad", torch.optim.Adagrad),
        ("rmsprop", torch.optim.RMSprop),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_make_optimizer_is_that_of_torch_when_named(name: str, kind: type) -> None:
    optimizer = make_optimizer(nn.Linear(1, 1), TrainSettings(optimizer=name, weight_decay=0.1, learning_rate=0.2))

    assert type(optimizer) is kind
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.2, 0.1)


def test_make_optimizer_looks_ahead_when_nesterov() -> None:
    assert make_optimizer(nn.Linear(1, 1), TrainSettings(optimizer="sgd", nesterov=True)).defaults["nesterov"]


def rates(settings: TrainSettings, steps_per_epoch: int) -> list[float]:
    """Return the rate of each step."""
    optimizer = make_optimizer(nn.Linear(1, 1), settings)
    schedule = make_schedule(optimizer, settings, steps_per_epoch)
    found = []
    for _ in range(settings.epochs):
        for _ in range(steps_per_epoch):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch()
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("exponential", [1 / 3, 2 / 3, 1, 0.5, 0.25, 0.125]),
        ("step", [1 / 3, 2 / 3, 1, 1, 0.5, 0.5]),
        # (1 + cos(pi * epoch / 4)) / 2 over the four epochs that are left
        ("cosine", [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_make_schedule_rises_before_it_falls_when_warmed_up(schedule: str, expected: list[float]) -> None:
    settings = TrainSettings(epochs=6, warmup_epochs=2, schedule=schedule, learning_rate=1.0, gamma=0.5, step_epochs=2)
    assert rates(settings, 1) == pytest.approx(expected, abs=1e-6)


def test_make_schedule_moves_every_step_when_one_cycle() -> None:
    found = rates(TrainSettings(epochs=4, schedule="one_cycle", learning_rate=1.0), 5)

    assert found[0] == pytest.approx(1 / 25)  # PyTorch's div_factor
    assert found.index(max(found)) in (5, 6)  # 30 % of 20 steps
    assert max(found) == pytest.approx(1.0, abs=0.02)
    assert found[-1] < 0.02
    assert len(set(found)) == 20


def test_flip_images_mirrors_about_half_when_asked() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    flipped = flip_images(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0))

    mirrored = [torch.equal(one, image[0].flip(2)) for one in flipped]
    assert all(is_mirrored or torch.equal(one, image[0]) for one, is_mirrored in zip(flipped, mirrored, strict=True))
    assert 70 < sum(mirrored) < 130
    with pytest.raises(CompressionError, match="flip needs images"):
        flip_images(torch.zeros(2, 3), torch.Generator())


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accumulate": 0}, "'accumulate' must be above 0"),
        ({"accumulate": 9, "batch_size": 8}, "accumulate = 9 parts of a batch of 8"),
        ({"max_gradient_norm": 0.0}, "'max_gradient_norm' must be above 0"),
        ({"max_gradient_norm": math.nan}, "'max_gradient_norm' must be above 0"),
        ({"ema_decay": 1.0}, r"'ema_decay' must be in \(0, 1\)"),
        ({"nesterov": True}, "'nesterov' needs optimizer"),
        ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "'nesterov' needs optimizer"),
        ({"warmup_epochs": 10}, "'warmup_epochs' must be in"),
        ({"warmup_epochs": 1, "schedule": "one_cycle"}, "warms up by itself"),
        ({"devices": 0}, "'devices' must be above 0"),
    ],
)
def test_train_settings_refuse_when_a_value_makes_no_sense(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TrainSettings(**values)


def test_wherever_leaves_out_only_where_a_training_is_computed_when_asked() -> None:
    settings = TrainSettings(devices=2, strategy="fsdp", oversubscribe=True, epochs=3)

    assert wherever(settings) == TrainSettings(epochs=3)
    assert trainings_in(settings) == [settings]
    assert trainings_in(PruneSettings()) == []
    assert wherever(PruneSettings()) == PruneSettings()


def test_linear_plan_splits_a_pair_by_columns_and_rows_when_only_activations_are_between() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    kinds = {name: type(style).__name__ for name, style in linear_plan(net, 2).items()}

    assert kinds == {"0": "ColwiseParallel", "2": "RowwiseParallel", "3": "ColwiseParallel", "5": "ColwiseParallel"}
    # Neither six nor four columns are a multiple of five processes: each layer is gathered.
    assert {type(style).__name__ for style in linear_plan(net, 5).values()} == {"ColwiseParallel"}


# ---------------------------------------------------------------- control flow and variable length


class Branching(nn.Module):
    """Answers by one layer or another, as the sum of its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.below = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        flat = image.flatten(1)
        if flat.sum() > 0:
            return self.above(flat)
        return self.below(flat)


def test_train_learns_both_sides_and_export_names_the_branch_when_control_flows(tmp_path: Path) -> None:
    build = rebuilding(Branching, 1, 1, 8, 8)
    torch.manual_seed(0)
    weights, report = trained(tmp_path, replace(SETTINGS, batch_size=8), build)

    assert report.losses[-1] < report.losses[0]
    net = Branching()
    net.load_state_dict(weights)
    image = InputSettings(shape=(1, 1, 8, 8), layout="NCHW")
    model = ModelSettings(factory="nets.py:Branching", inputs={"image": image}, outputs=("logits",))
    sample = Sample("one", {"image": np.ones((1, 1, 8, 8), np.float32)})
    with pytest.raises(ExportError, match=r"test_training_options.py, line \d+, in forward, 'if flat.sum\(\) > 0:'"):
        export_torch(net, model, ExportSettings(), [sample], tmp_path)


class Tones:
    """Signals of three lengths; the class is the tone in it: as many periods in 32 values."""

    def __init__(self, count: int, seed: int, lengths: tuple[int, ...] = (32, 48, 64)) -> None:
        self.count, self.seed, self.lengths = count, seed, lengths

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng(self.seed + index)
        length, tone = self.lengths[index % len(self.lengths)], index % 4
        signal = np.sin(2 * np.pi * (2 * tone + 1) * np.arange(length) / 32 + random.uniform(0, 6))
        noisy = (signal + 0.3 * random.standard_normal(length)).astype(np.float32)
        return Sample(f"tone {index}", {"signal": noisy[None, None]}, tone)


class MeanPooled(nn.Module):
    """Takes a signal of any length ``(N, 1, L)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 12, 9), nn.Linear(12, 4)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(signal).relu().mean(2))


def test_train_learns_from_every_length_and_exports_one_when_lengths_differ(tmp_path: Path) -> None:
    build = rebuilding(MeanPooled, 1, 1, 48)
    context = step_context(build, 1, 1, 48, data=(Tones(240, 0), Tones(60, 1000)))
    report = train(context, replace(SETTINGS, epochs=8, batch_size=16), tmp_path)

    assert (report.num_train, report.num_validation, report.num_held_out) == (192, 48, 60)
    assert report.held_out_score > 0.6  # one in four by guessing
    net = build(TorchModel(None, tmp_path / "weights.safetensors"))
    signal = InputSettings(shape=(1, 1, 48), layout="any")
    model = ModelSettings(factory="nets.py:MeanPooled", inputs={"signal": signal}, outputs=("logits",))
    exported = export_torch(net, model, ExportSettings(), [Tones(1, 5, (48,))[0]], tmp_path)
    assert exported.inputs[0].shape == (1, 1, 48)
