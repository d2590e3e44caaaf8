from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_nets import (
    build_small,
    distill_stage,
    interrupt_after,
    noisy_patterns,
    prune_stage,
    small_net,
    train_stage,
)
from torch import nn

from edgeopt.artifacts import TorchModel, sha256_file
from edgeopt.compress.distill import distillation_loss
from edgeopt.compress.weights import copy_state, save_weights
from edgeopt.errors import CompressionError
from edgeopt.steps import DistillSettings, PruneSettings
from edgeopt.training import TrainSettings

SETTINGS = DistillSettings(epochs=4, batch_size=32, learning_rate=1e-2, threads=1, max_shift=1)
LONGER = replace(SETTINGS, epochs=10, max_shift=0)


def test_distillation_loss_is_what_the_paper_says_when_worked_by_hand() -> None:
    # T = 2. Teacher logits (0, 2 ln 3) soften to odds 1 : 3, student logits (0, 0) to 1 : 1.
    # KL = 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2) = 0.130812; times T^2 = 0.523248. Cross entropy: ln 2 = 0.693147.
    teacher = torch.tensor([[0.0, 2 * math.log(3)]])
    student = torch.zeros(1, 2)
    loss = distillation_loss(student, teacher, torch.tensor([1]), temperature=2.0, alpha=0.25)

    assert loss.item() == pytest.approx(0.25 * 0.523248 + 0.75 * 0.693147, abs=1e-6)


def test_distillation_loss_is_a_mean_when_there_are_several_samples() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    guide = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6) % 4
    each = [distillation_loss(logits[i : i + 1], guide[i : i + 1], labels[i : i + 1], 3.0, 0.5) for i in range(6)]

    together = distillation_loss(logits, guide, labels, 3.0, 0.5)
    assert together.item() == pytest.approx(sum(loss.item() for loss in each) / 6, rel=1e-5)


def test_distillation_loss_is_zero_when_the_student_answers_like_the_teacher() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])

    assert distillation_loss(logits, logits + 7.0, torch.tensor([0]), 4.0, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_distill_stage_mends_the_student_when_channels_were_pruned(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("train", "prune", "distill", "again")]
    for folder in folders:
        folder.mkdir()
    data = noisy_patterns()
    settings = TrainSettings(epochs=8, batch_size=32, learning_rate=1e-2, threads=1)
    teacher, taught = train_stage(build_small, TorchModel(), *data, settings, folders[0])
    pruned, _ = prune_stage(build_small, teacher, (1, 1, 8, 8), PruneSettings(pruning_ratio=0.5), 1, folders[1])
    digests = [sha256_file(path) for path in (teacher.weights, pruned.weights, pruned.structure)]
    student, report = distill_stage(build_small, pruned, teacher, *data, LONGER, folders[2])

    assert report.held_out_score > 0.9 * taught.held_out_score
    assert student.structure.read_bytes() == pruned.structure.read_bytes()
    assert build_small(student)[0].out_channels == 4
    assert digests == [sha256_file(path) for path in (teacher.weights, pruned.weights, pruned.structure)]
    again, same_report = distill_stage(build_small, pruned, teacher, *data, LONGER, folders[3])
    assert again.weights.read_bytes() == student.weights.read_bytes()
    assert same_report == report


def test_distill_stage_starts_over_when_the_teacher_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teachers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        teachers.append(TorchModel(weights=tmp_path / f"{seed}.safetensors"))
        save_weights(small_net(), teachers[-1].weights)

    def distill(teacher: TorchModel, name: str) -> bytes:
        (tmp_path / name).mkdir(exist_ok=True)
        student, _ = distill_stage(build_small, teachers[0], teacher, *noisy_patterns(), SETTINGS, tmp_path / name)
        return student.weights.read_bytes()

    expected = distill(teachers[1], "fresh")
    interrupt_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        distill(teachers[0], "again")
    monkeypatch.undo()

    with caplog.at_level(logging.INFO, "edgeopt"):
        assert distill(teachers[1], "again") == expected
    assert "training starts over" in caplog.text


def test_distill_stage_refuses_when_teacher_and_student_differ_in_classes(tmp_path: Path) -> None:
    def build(artifact: TorchModel) -> nn.Module:
        classes = 10 if artifact.weights is None else 7
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    teacher = TorchModel(weights=tmp_path / "teacher.safetensors")
    with pytest.raises(CompressionError, match="the teacher answers 7 classes, the student 10"):
        distill_stage(build, TorchModel(), teacher, *noisy_patterns(), SETTINGS, tmp_path)


def test_distill_stage_refuses_when_the_teacher_is_not_finite(tmp_path: Path) -> None:
    def build(artifact: TorchModel) -> nn.Module:
        model = small_net()
        if artifact.weights is not None:
            model[0].weight.data[0] = math.nan
        return model

    with pytest.raises(CompressionError, match=r"teacher: weight '0\.weight' has NaN"):
        distill_stage(build, TorchModel(), TorchModel(weights=tmp_path), *noisy_patterns(), SETTINGS, tmp_path)


def test_copy_state_copies_when_two_layers_share_a_weight() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    state = copy_state(model)

    assert state["0.weight"].data_ptr() != state["1.weight"].data_ptr()


def test_save_weights_leaves_the_old_file_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(nn.Linear(2, 2), path)
    before = path.read_bytes()
    path.with_name("weights.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_weights(nn.Linear(2, 2), path)

    assert path.read_bytes() == before
