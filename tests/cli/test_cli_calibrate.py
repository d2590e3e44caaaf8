"""``edgeopt calibrate``: the table, its JSON, warnings on every run, and the cache that a build shares."""

import json
from pathlib import Path

import pytest

from edgeopt.cli.main import main


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def test_calibrate_shows_and_writes_the_same_when_it_runs_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A correction that one method keeps and another does not would make another graph to calibrate.
    off = [part for key in ("clamp_masks", "smooth", "equalize") for part in ("--set", f"correct.{key}=off")]
    command = ["calibrate", *off, "--set", "calibration.method=percentile", "--set", "calibration.percentile=90"]
    assert main([*command, "--json", "one.json"]) == 0
    shown = capsys.readouterr().out
    assert "5 tensors over 8 samples, asymmetric" in shown
    tensors = {item["name"]: item for item in json.loads((here / "one.json").read_text())["tensors"]}
    image = tensors["image"]
    assert image["observed"]["maximum"] > image["chosen"]["maximum"] > 1
    assert 0 < image["clipped_share"] < 0.1
    assert image["tail"][0] <= image["tail"][1] <= image["tail"][2]
    assert tensors["logits"]["chosen"] == tensors["logits"]["observed"]
    assert main([*command, "--json", "two.json", "-q"]) == 0
    assert (here / "one.json").read_bytes() == (here / "two.json").read_bytes()
    assert len(list(here.glob("build/.cache/calibrate-*/histograms.npz"))) == 1
    symmetric = [*command, "--set", "calibration.method=mse", "--scheme", "symmetric", "--json", "-"]
    assert main(symmetric) == 0
    assert json.loads(capsys.readouterr().out)["scheme"] == "symmetric"
    assert len(list(here.glob("build/.cache/calibrate-*/histograms.npz"))) == 1  # methods and schemes share it
    assert len(list(here.glob("build/.cache/ranges-*/ranges.json"))) == 2


def test_calibrate_says_why_there_are_no_tails_when_the_method_is_minmax(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate"]) == 0
    assert "no tails: minmax keeps no histograms" in capsys.readouterr().out


def test_calibrate_warns_each_time_when_values_do_not_fit_the_declared_range(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = here / "edgeopt.toml"
    recipe.write_text(
        recipe.read_text().replace("shape = [1, 3, 8, 8]", "shape = [1, 3, 8, 8]\nvalue_range = [0, 255]")
    )
    warning = "warning: calibration samples: input 'image' lies in [0.0003895, 1.995], declared is [0, 255]: 0.78%"
    for _ in range(2):
        assert main(["calibrate"]) == 0
        assert warning in capsys.readouterr().err
    assert main(["calibrate", "--set", "model.inputs.image.value_range=[0, 2]"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_calibrate_refuses_when_there_is_no_such_scheme_or_range(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--scheme", "asymetric"]) == 10
    assert "did you mean 'asymmetric'?" in capsys.readouterr().err
    assert main(["calibrate", "--set", "model.inputs.image.value_range=[1, 0]"]) == 3
    assert main(["calibrate", "--set", "calibration.percentile=0.9999"]) == 3
    assert "(50, 100] %, got 0.9999" in capsys.readouterr().err
