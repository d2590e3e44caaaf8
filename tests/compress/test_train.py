from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import Build, Listed, build_small, interrupt_after, noisy_patterns, rebuilding, small_net, train_stage
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.history import History
from edgeopt.compress.optimizers import make_optimizer
from edgeopt.compress.schedules import make_schedule
from edgeopt.compress.train import TrainReport
from edgeopt.errors import CompressionError, DataError, RecipeError
from edgeopt.training import TrainSettings

SETTINGS = TrainSettings(
    epochs=5, batch_size=64, learning_rate=1e-2, threads=1, max_shift=1, patience=4, validation_share=0.2
)


def train(out_dir: Path, settings: TrainSettings = SETTINGS, build: Build = build_small) -> tuple[bytes, TrainReport]:
    out_dir.mkdir(exist_ok=True)
    artifact, report = train_stage(build, TorchModel(), *noisy_patterns(), settings, out_dir)
    assert artifact.weights is not None
    return artifact.weights.read_bytes(), report


def test_train_stage_learns_and_reports_when_data_is_good(tmp_path: Path) -> None:
    _, report = train(tmp_path, replace(SETTINGS, epochs=16, max_shift=0, patience=None))

    assert report.held_out_score > 0.8  # one in ten by guessing
    assert report.losses[-1] < report.losses[0]
    assert (report.num_train, report.num_validation, report.num_held_out) == (320, 80, 200)
    assert report.num_epochs == len(report.losses) == len(report.validation_scores) == 16
    assert report.validation_scores[report.best_epoch - 1] == max(report.validation_scores)
    assert json.loads(json.dumps(asdict(report)))["best_epoch"] == report.best_epoch
    assert sorted(path.name for path in tmp_path.iterdir()) == ["structure.json", "weights.safetensors"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_train_stage_gives_the_same_bytes_when_run_twice(tmp_path: Path, optimizer: str) -> None:
    settings = replace(SETTINGS, epochs=2, optimizer=optimizer)  # type: ignore[arg-type]

    assert train(tmp_path / "a", settings) == train(tmp_path / "b", settings)


def test_train_stage_gives_other_weights_when_the_seed_is_another(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)

    assert train(tmp_path / "a", settings)[0] != train(tmp_path / "b", replace(settings, seed=1))[0]


def test_train_stage_leaves_the_callers_state_when_done(tmp_path: Path) -> None:
    torch.manual_seed(5)
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(tmp_path, replace(SETTINGS, epochs=1, threads=threads + 1))

    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_train_stage_does_not_choose_by_held_out_samples_when_they_change(tmp_path: Path) -> None:
    train_set, held_out = noisy_patterns()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    spoilt = Listed(held_out.images, (held_out.labels + 1) % 10)
    honest, _ = train_stage(build_small, TorchModel(), train_set, held_out, SETTINGS, tmp_path / "a")
    other, _ = train_stage(build_small, TorchModel(), train_set, spoilt, SETTINGS, tmp_path / "b")

    assert honest.weights.read_bytes() == other.weights.read_bytes()


def test_train_stage_keeps_the_last_epoch_when_nothing_is_validated(tmp_path: Path) -> None:
    _, report = train(tmp_path, replace(SETTINGS, epochs=3, patience=None, validation_share=0.0))

    assert (report.num_train, report.num_validation, report.best_epoch) == (400, 0, 3)
    assert report.validation_scores == ()


def test_train_stage_stops_early_when_validation_gets_no_better(tmp_path: Path) -> None:
    _, report = train(tmp_path, replace(SETTINGS, epochs=60, patience=2, max_shift=0, learning_rate=3e-3))

    assert report.num_epochs == report.best_epoch + 2 < 60


# The learning rate grows until nothing is learnt any more, so the best epoch is not the last.
OVERSHOOTING = replace(SETTINGS, schedule="exponential", gamma=6.0, patience=None)


@pytest.mark.parametrize(
    ("settings", "epoch"), [(SETTINGS, 1), (SETTINGS, 3), (SETTINGS, 5), (OVERSHOOTING, 4), (OVERSHOOTING, 5)]
)
def test_train_stage_gives_the_same_bytes_when_interrupted_and_called_again(
    tmp_path: Path,
    settings: TrainSettings,
    epoch: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = train(tmp_path / "whole", settings)
    if settings is OVERSHOOTING:
        assert expected[1].best_epoch < 4
    interrupt_after(epoch, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "again", settings)
    monkeypatch.undo()
    with caplog.at_level(logging.INFO, "edgeopt"):
        assert train(tmp_path / "again", settings) == expected
    assert f"goes on after epoch {epoch}" in caplog.text


KILLED = """
import sys
from pathlib import Path
import test_train
print("ready", flush=True)
test_train.train(Path(sys.argv[1]), test_train.LONG)
"""
LONG = replace(
    SETTINGS, epochs=40, patience=None, schedule="one_cycle", ema_decay=0.9, accumulate=2, max_gradient_norm=1.0
)


def test_train_stage_gives_the_same_bytes_when_killed_and_called_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = train(tmp_path / "whole", LONG)
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    command = [sys.executable, "-c", KILLED, str(checkpoint.parent)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent)
    while not checkpoint.exists():
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    with caplog.at_level(logging.INFO, "edgeopt"):
        assert train(tmp_path / "killed", LONG) == expected
    assert "goes on after epoch" in caplog.text


def test_train_stage_starts_over_when_the_checkpoint_is_damaged(tmp_path: Path) -> None:
    expected = train(tmp_path / "whole")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "checkpoint.pt").write_bytes(b"no checkpoint")

    assert train(tmp_path / "again") == expected


class Diverging(nn.Module):
    """Answers NaN from its third training step on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.steps = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        logits: torch.Tensor = self.net(image)
        return logits * math.nan if self.steps > 6 else logits


def test_train_stage_names_epoch_and_step_when_the_loss_is_nan(tmp_path: Path) -> None:
    # 320 samples in batches of 64 are 5 steps an epoch, so the seventh is the second step of epoch 2.
    with pytest.raises(CompressionError, match="epoch 2, step 2: the loss is nan; the checkpoint of epoch 1 is kept"):
        train(tmp_path, build=lambda _: Diverging())
    assert (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "weights.safetensors").exists()


def test_train_stage_refuses_when_the_weights_are_not_finite(tmp_path: Path) -> None:
    def build(_: TorchModel) -> nn.Module:
        model = small_net()
        with torch.no_grad():
            model[4].bias[0] = math.inf
        return model

    with pytest.raises(CompressionError, match=r"before training: weight '4\.bias' has NaN or infinite"):
        train(tmp_path, build=build)


def test_train_stage_refuses_when_the_output_is_no_list_of_logits(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="one output of logits"):
        train(tmp_path, build=lambda _: nn.Conv2d(1, 10, 3))


def test_train_stage_names_the_step_when_the_network_does_not_fit_the_samples(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="epoch 1, step 1: the network cannot be trained"):
        train(tmp_path, build=lambda _: nn.Conv2d(3, 10, 3))


@pytest.mark.parametrize(("label", "shown"), [(10, "10"), (-100, "-100")])  # PyTorch passes over the other one
def test_train_stage_refuses_when_a_label_is_that_of_no_class(tmp_path: Path, label: int, shown: str) -> None:
    train_set, held_out = noisy_patterns()
    wrong = Listed(train_set.images, np.where(train_set.labels == 3, label, train_set.labels))
    with pytest.raises(DataError, match=f"a label is {shown}, the network has classes 0 to 9"):
        train_stage(build_small, TorchModel(), wrong, held_out, SETTINGS, tmp_path)


def test_train_stage_says_what_is_wrong_when_a_batch_of_one_cannot_be_normalised(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

    with pytest.raises(CompressionError, match="epoch 1, step 1: the network cannot be trained: Expected more than 1"):
        train_stage(
            rebuilding(net, 1, 1, 8, 8), TorchModel(), *noisy_patterns(), replace(SETTINGS, batch_size=1), tmp_path
        )


def test_train_stage_promises_no_checkpoint_when_the_first_epoch_fails(tmp_path: Path) -> None:
    train_set, held_out = noisy_patterns()
    settings = replace(SETTINGS, learning_rate=1e30)
    with pytest.raises(CompressionError, match=r"epoch 1, step \d+: the loss is (nan|inf)\n"):
        train_stage(build_small, TorchModel(), train_set, held_out, settings, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 10**22}, "'seed' must fit 32 bits"),
        ({"max_shift": -1}, "'max_shift' must be at least 0, got -1"),
        ({"bn_penalty": math.nan}, "'bn_penalty' must be at least 0, got nan"),
        ({"momentum": 1}, r"'momentum' must be in \[0, 1\), got 1"),
    ],
)
def test_settings_name_the_key_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TrainSettings(**settings)


def test_train_stage_refuses_when_held_out_samples_are_missing(tmp_path: Path) -> None:
    train_set, held_out = noisy_patterns()
    nobody = Listed(held_out.images[:0], np.zeros(0, int))
    with pytest.raises(DataError, match="held_out: got no samples"):
        train_stage(build_small, TorchModel(), train_set, nobody, SETTINGS, tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (TrainSettings(schedule="constant", learning_rate=1.0, epochs=4), [1, 1, 1, 1]),
        (TrainSettings(schedule="step", step_epochs=2, gamma=0.1, learning_rate=1.0, epochs=4), [1, 1, 0.1, 0.1]),
        (TrainSettings(schedule="exponential", gamma=0.5, learning_rate=1.0, epochs=4), [1, 0.5, 0.25, 0.125]),
        # (1 + cos(pi * epoch / 4)) / 2
        (TrainSettings(schedule="cosine", learning_rate=1.0, epochs=4), [1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_make_schedule_sets_the_rate_of_each_epoch_when_stepped(settings: TrainSettings, expected: list[float]) -> None:
    optimizer = make_optimizer(nn.Linear(1, 1), settings)
    schedule = make_schedule(optimizer, settings, 1)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_epoch()

    assert rates == pytest.approx(expected, abs=1e-6)


def test_make_optimizer_uses_momentum_when_it_is_sgd() -> None:
    optimizer = make_optimizer(nn.Linear(1, 1), TrainSettings(optimizer="sgd", momentum=0.7, weight_decay=0.1))

    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.7
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_history_finds_the_best_epoch_when_scores_tie() -> None:
    history = History()
    is_best = [history.record(1.0, score) for score in (0.5, 0.8, 0.7, 0.8, 0.6)]

    assert is_best == [True, True, False, True, False]
    assert history.best_epoch == 4
    assert not history.is_stalled(2)
    assert history.is_stalled(1)
