"""One build of many, real and tiny: its figures, its folder, and what it shares with the others."""

import json
from pathlib import Path

import pytest
from tiny_project import RECIPE, write_project

from edgeopt.explore.trial import TrialResult, run_trial, trial_folder

HARSH = {"parity.min_sqnr_db": 200.0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = "[train]\nepochs = 1\nbatch_size = 8\nthreads = 1\n"
    return write_project(tmp_path_factory.mktemp("trial") / "project", recipe=RECIPE + train) / "edgeopt.toml"


@pytest.fixture(scope="module")
def result(recipe: Path) -> TrialResult:
    return run_trial(recipe, "arm64", {}, recipe.parent / "out")


def test_run_trial_gives_the_figures_of_its_bundle_when_it_is_well(recipe: Path, result: TrialResult) -> None:
    assert (result.status, result.error) == ("ok", "")
    assert result.bundle is not None
    bundle = recipe.parent / "out" / result.bundle
    figures = result.figures
    assert figures.model_bytes == (bundle / "model.tflite").stat().st_size
    assert figures.bundle_bytes == sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    # Conv2d(3, 8, 3) with its norm folded and Linear(8, 4), over 8 x 8 pixels
    assert figures.num_parameters == (3 * 9 * 8 + 8) + (8 * 4 + 4)
    assert figures.num_macs == 3 * 9 * 8 * 8 * 8 + 8 * 4
    assert figures.parity_passed is True
    (output,) = json.loads((bundle / "bundle.json").read_text())["parity"]["outputs"]
    assert (figures.metric_name, figures.metric) == ("top1", output["accuracy"])
    assert figures.float_metric == output["float_accuracy"]
    assert figures.latency_ms is not None
    assert figures.instructions is None


def test_result_survives_when_it_is_written_and_read(result: TrialResult) -> None:
    written = json.loads(json.dumps(result.to_json()))
    assert TrialResult.from_json(written) == result
    written["figures"]["of_a_later_version"] = 1
    assert TrialResult.from_json(written) == result


def test_run_trial_trains_once_when_another_trial_has_trained(recipe: Path, result: TrialResult) -> None:
    cache = recipe.parent / "out" / ".cache"
    trained = [path.stat().st_mtime_ns for path in cache.glob("train-*/weights.safetensors")]
    other = run_trial(recipe, "arm64", {"quantize.precision": "dynamic"}, recipe.parent / "out")
    assert [path.stat().st_mtime_ns for path in cache.glob("train-*/weights.safetensors")] == trained
    assert len(trained) == 1
    assert other.bundle != result.bundle
    assert other.status == "ok"


def test_run_trial_keeps_the_figures_when_the_verdict_is_no(recipe: Path, result: TrialResult) -> None:
    refused = run_trial(recipe, "arm64", HARSH, recipe.parent / "out")
    assert refused.status == "refused"
    assert "dB to the float network" in refused.error
    assert refused.figures.parity_passed is False
    assert refused.figures.model_bytes == result.figures.model_bytes
    assert refused.bundle is not None
    assert refused.bundle.endswith("arm64.rejected")


def test_run_trial_says_why_when_there_is_no_bundle(recipe: Path) -> None:
    failed = run_trial(recipe, "arm64", {"train.learning_rate": 1e30}, recipe.parent / "out")
    assert (failed.status, failed.bundle, failed.figures.metric) == ("failed", None, None)
    assert failed.error.startswith("[train] ")


def test_trial_folder_is_one_when_values_come_in_another_order() -> None:
    assert trial_folder(Path(), "arm64", {"a": 1, "b": 2}) == trial_folder(Path(), "arm64", {"b": 2, "a": 1})
    assert trial_folder(Path(), "arm64", {"a": 1}) != trial_folder(Path(), "arm64", {"a": 2})
    assert trial_folder(Path(), "x86", {"a": 1}) != trial_folder(Path(), "arm64", {"a": 1})
