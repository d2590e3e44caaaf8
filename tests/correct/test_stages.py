"""The two stages: what is switched off is left out, what brings nothing too, and a build reports the gains."""

import json
from pathlib import Path

import numpy as np
import pytest
from float_graphs import node, write_graph
from planted_graphs import MINMAX, NOTHING, corrected, noise, only, uneven_channels, weights
from tiny_project import edgeopt_run, write_project

from edgeopt.correct.channels import ChannelGroup
from edgeopt.correct.float_graph import correct
from edgeopt.errors import QuantizationError, RecipeError
from edgeopt.settings import CorrectSettings, QuantizeSettings

SHAPE = (1, 4, 6, 6)


def test_correct_changes_nothing_when_all_is_off(tmp_path: Path) -> None:
    source = uneven_channels(tmp_path)
    made, gains = corrected(source, NOTHING, noise(SHAPE), tmp_path / "corrected")
    assert gains == []
    assert (
        made.path.read_bytes()
        == corrected(source, only("smooth"), noise(SHAPE), tmp_path / "again")[0].path.read_bytes()
    )


def scaled_products(folder: Path):
    """A product with one number behind a convolution: it can be folded, and int8 gains nothing by it."""
    constants = {"w": weights(4, 4, 1, 1), "two": np.full((1, 4, 1, 1), 2, np.float32)}
    return write_graph(folder, [node("Conv", "x w", "c"), node("Mul", "c two", "y")], constants, SHAPE)


@pytest.mark.parametrize(("switch", "kept"), [("auto", False), ("on", True)])
def test_correct_keeps_what_brings_nothing_only_when_it_is_on(tmp_path: Path, switch: str, kept: bool) -> None:
    _, [gain] = corrected(
        scaled_products(tmp_path), only("fold_batch_norm", switch), noise(SHAPE, 32), tmp_path / "corrected"
    )
    assert abs(gain.with_db - gain.without_db) < 0.5
    assert gain.kept is kept
    assert gain.summary.endswith("left out") is not kept


@pytest.mark.parametrize("switch", ["auto", "on"])
def test_correct_refuses_a_correction_that_changes_an_answer(
    tmp_path: Path, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(self: ChannelGroup, factors: np.ndarray) -> None:
        for operand in self.writers:
            operand.multiply(factors)

    monkeypatch.setattr(ChannelGroup, "multiply", careless)
    source = uneven_channels(tmp_path)
    if switch == "auto":
        assert corrected(source, only("equalize"), noise(SHAPE), tmp_path / "corrected")[1] == []
        return
    with pytest.raises(QuantizationError, match=r"correct\.equalize changes output 'y'.*expected at most 0\.0001"):
        corrected(source, only("equalize", "on"), noise(SHAPE), tmp_path / "corrected")


def test_correct_refuses_to_look_at_nothing(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="at least one calibration sample"):
        correct(uneven_channels(tmp_path), CorrectSettings(), MINMAX, QuantizeSettings(), [], tmp_path)
    with pytest.raises(RecipeError, match="'num_samples' must be at least 1"):
        CorrectSettings(num_samples=0)


def test_build_reports_each_gain_when_corrections_are_on(tmp_path: Path) -> None:
    folder = write_project(tmp_path / "project")
    recipe = (folder / "edgeopt.toml").read_text() + '\n[correct]\nequalize = "on"\ncorrect_bias = "on"\n'
    (folder / "edgeopt.toml").write_text(recipe)
    done = edgeopt_run(folder, "build", "--target", "x86", "--json", "build.json", "--allow-slower")
    assert done.returncode == 0, done.stderr
    built = json.loads((folder / "build.json").read_text())
    gains = built["bundles"][0]["corrections"]
    manifest = json.loads((folder / "build/edgeopt/x86/bundle.json").read_text())
    assert [gain["correction"] for gain in gains] == ["equalize", "correct_bias"]
    assert all(gain["kept"] for gain in gains)
    assert manifest["corrections"] == gains
    assert "correct_bias: " in (folder / "build/edgeopt/x86/README.md").read_text()
    assert {"correct", "refine-asymmetric"} <= {stage["name"] for stage in built["stages"]}
    assert "equalize " in done.stdout
