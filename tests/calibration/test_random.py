"""Random numbers are samples only for who asks for them, and every bundle made with them says so."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_project import RECIPE, bundle_files

from edgeopt.calibration.random.preprocess import open_dataset
from edgeopt.cli.main import main
from edgeopt.errors import RecipeError
from edgeopt.settings import InputSettings

DECLARED = {"x": InputSettings((1, 3, 8, 8), value_range=(-1.0, 3.0))}


def test_open_dataset_draws_in_the_declared_range_and_the_same_again_when_asked_twice() -> None:
    opened = open_dataset("calibration", DECLARED, {})
    one, again, other = opened[3], opened[3], opened[4]
    np.testing.assert_array_equal(one.inputs["x"], again.inputs["x"])
    assert not np.array_equal(one.inputs["x"], other.inputs["x"])
    assert -1 <= one.inputs["x"].min() < 0 < 2 < one.inputs["x"].max() <= 3
    held_out = open_dataset("held_out", DECLARED, {})
    assert not np.array_equal(one.inputs["x"], held_out[3].inputs["x"])


def test_open_dataset_draws_from_the_normal_distribution_when_no_range_is_declared() -> None:
    sample = open_dataset("held_out", {"x": InputSettings((1, 10_000), layout="any")}, {})[0].inputs["x"]
    assert sample.dtype == np.float32
    assert abs(sample.mean()) < 0.05
    assert abs(sample.std() - 1) < 0.05
    with pytest.raises(IndexError):
        open_dataset("held_out", DECLARED, {})[10_000]
    with pytest.raises(RecipeError, match="unknown option 'seed'"):
        open_dataset("held_out", DECLARED, {"seed": 1})


@pytest.fixture
def asking_for_random(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (project / "edgeopt.toml").write_text(RECIPE.replace('dataset = "noise"', 'dataset = "random"'))
    monkeypatch.chdir(project)
    return project


def test_build_refuses_random_numbers_when_nobody_allows_them(
    asking_for_random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--target", "x86"]) == 5
    assert "random numbers" in (said := capsys.readouterr().err)
    assert "--allow-random-calibration" in said
    assert not (asking_for_random / "build/edgeopt").exists()


def test_bundle_says_that_it_was_calibrated_on_random_numbers_when_they_were_allowed(
    asking_for_random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = ["build", "--target", "x86", "--allow-random-calibration", "--allow-slower"]
    assert main([*allowed, "--set", "parity.min_top1_agreement=0.0", "--set", "parity.min_sqnr_db=0.0"]) == 0
    assert "looks like noise" in capsys.readouterr().err
    bundle = asking_for_random / "build/edgeopt/x86"
    files = bundle_files(bundle)
    manifest = json.loads(files["bundle.json"])
    assert manifest["calibration"]["random"] is True
    assert manifest["recipe"]["calibration"]["allow_random"] is True
    assert any("looks like noise" in warning for warning in manifest["calibration"]["warnings"])
    assert "**Calibrated on random numbers" in files["README.md"].decode()
    assert main(["verify", str(bundle)]) == 0
    assert "note: Calibrated on random numbers" in capsys.readouterr().out


def test_build_points_at_the_samples_when_the_verdict_is_no(
    asking_for_random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = ["build", "--target", "x86", "--allow-random-calibration", "--set", "parity.min_sqnr_db=90.0"]
    assert main(allowed) == 12
    assert "hint: look at the calibration samples first: input 'image' looks like noise" in capsys.readouterr().err
