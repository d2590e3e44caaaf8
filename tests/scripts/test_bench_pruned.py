"""scripts/bench compression of pruned networks: recipes prune as they say, to the shape trained from scratch."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_project import ROOT

import edgeopt
from edgeopt.recipe import load_recipe
from edgeopt.source import call_factory, example_inputs

SCRIPTS = ROOT / "scripts"
if not (SCRIPTS / "bench_pruned.py").is_file():
    pytest.skip("scripts/ is not part of an installed edgeopt", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from bench_pruned import PRUNED_WIDTHS, mean_cosine, num_macs  # noqa: E402


def pruned(name: str, tmp_path: Path, round_to: int = 8) -> dict[str, Any]:
    """Prune an untrained network as the recipe says and return the report, with the state's shapes."""
    loaded = load_recipe(SCRIPTS / f"bench_recipes/{name}.toml")
    model = loaded.recipe.model
    done = edgeopt.compress_network(
        call_factory(model, loaded.folder), [loaded.recipe.compress["prune"]], example_inputs(model), tmp_path,
        round_to=round_to,
    )  # fmt: skip
    shapes = {name: tuple(tensor.shape) for name, tensor in done.network.state_dict().items()}
    return {**done.reports["1-prune"], "shapes": shapes}


def test_resnet20_has_the_shape_of_the_network_from_scratch_when_it_was_pruned(tmp_path: Path) -> None:
    report = pruned("resnet20", tmp_path)
    loaded = load_recipe(SCRIPTS / "bench_recipes/resnet20.toml", {"model.arguments.widths": PRUNED_WIDTHS})
    scratch = call_factory(loaded.recipe.model, loaded.folder)

    assert report["shapes"] == {name: tuple(tensor.shape) for name, tensor in scratch.state_dict().items()}
    assert report["before"]["num_macs"] >= 3 * report["after"]["num_macs"]


def test_gestures_keeps_a_quarter_of_the_multiplications_when_pruned(tmp_path: Path) -> None:
    report = pruned("gestures", tmp_path)

    # By hand: 64 steps of 6 signals into 48 channels by kernels of 5, and so on.
    before = 5 * (64 * 48 * (6 + 48) + 32 * 96 * (48 + 96) + 16 * 192 * (96 + 192)) - 5 * 16 * 192 * 192 + 192 * 7
    assert report["before"]["num_macs"] == before
    assert report["before"]["num_macs"] >= 4 * report["after"]["num_macs"]


def test_resnet20_refuses_a_depth_when_it_makes_no_whole_groups() -> None:
    loaded = load_recipe(SCRIPTS / "bench_recipes/resnet20.toml", {"model.arguments.depth": 21})
    with pytest.raises(edgeopt.EdgeoptError, match="3 groups make a depth of 2 and a multiple of 6, got 21"):
        call_factory(loaded.recipe.model, loaded.folder)


def test_num_macs_takes_the_ends_of_the_chain_when_steps_report_it() -> None:
    steps = {"distill": size(300, 300), "factorize": size(400, 300), "prune": size(900, 400), "train": {"losses": []}}

    assert num_macs(steps) == (900, 300)


def size(before: int, after: int) -> dict[str, Any]:
    return {"before": {"num_macs": before}, "after": {"num_macs": after}}


def test_mean_cosine_is_that_of_each_row() -> None:
    assert mean_cosine(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 5.0]])) == pytest.approx(
        (np.sqrt(0.5) + 1) / 2
    )
