"""Architectures with seeded random weights: float, int8, and no transposes but the model's own."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from architectures import ARCHITECTURES, RECURRENT, SUPPRESSING, TRANSFORMERS
from judging import (
    HEADER,
    Judged,
    builtins,
    exported,
    float_error,
    images,
    quantized,
    run_tflite_on,
    steps_apart,
)

from edgeopt.tflite.inspect import read_tflite
from edgeopt.tflite.lower import lower

pytestmark = [
    pytest.mark.slow,
    # What torch says about itself while it exports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MAX_FLOAT_ERROR = 1e-4  # of the output's range
NUM_BOXES = 240  # before suppression

# The transposes that the models themselves mean; every other net has none.
OF_THE_MODEL = {
    "shufflenet_v2": 16,  # one channel shuffle in each block
    "yolo": 2,  # boxes of one anchor together, in each of two scales
    "vit_tiny": 48,  # query, key, value and result of each head in twelve layers
    "resnet_1d": 1,  # the signal comes as (channels, time): the choice of layout is for images
}


def min_integer_share(name: str) -> float:
    return 0.85 if name in TRANSFORMERS else 0.95


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float_file_answers_as_onnxruntime_when_lowered(name: str, judged_architecture: Judged) -> None:
    assert judged_architecture(name).float_error < MAX_FLOAT_ERROR


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_files_have_only_the_transposes_of_the_model_when_images_are_channels_last(
    name: str, judged_architecture: Judged
) -> None:
    facts = judged_architecture(name)
    assert [facts.float_transposes, facts.transposes] == [OF_THE_MODEL.get(name, 0)] * 2


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in RECURRENT])
def test_int8_file_multiplies_integers_when_network_is_quantized(name: str, judged_architecture: Judged) -> None:
    assert judged_architecture(name).integer_share >= min_integer_share(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_int8_file_answers_as_onnxruntime_when_quantized(name: str, judged_architecture: Judged) -> None:
    facts = judged_architecture(name)
    if name in TRANSFORMERS | RECURRENT:  # functions and products of computed values are float: last bits may differ
        assert facts.equal_share >= 0.99
        assert facts.worst_steps <= 2
    else:
        assert (facts.equal_share, facts.worst_steps) == (1.0, 0)


def test_detector_finds_the_boxes_of_onnxruntime_when_it_suppresses_others(tmp_path: Path) -> None:
    calibration, held_out = SUPPRESSING.samples(8, seed=1), SUPPRESSING.samples(4, seed=2)
    model = exported(SUPPRESSING.network(), calibration[:2], tmp_path)
    inputs = images(model.inputs)
    content = lower(ir.load(model.path), input_layouts=inputs)
    assert builtins(read_tflite(content))["TRANSPOSE"] == OF_THE_MODEL["yolo"]
    counts = {len(values) for answers in run_tflite_on(content, held_out, inputs, {}) for values in answers.values()}
    assert len(counts) > 1
    assert 0 < min(counts) < max(counts) < NUM_BOXES
    assert float_error(model, content, held_out, inputs, {}) < MAX_FLOAT_ERROR
    qdq, ranges = quantized(model, calibration, tmp_path)
    content = lower(ir.load(qdq.path), input_layouts=inputs)
    assert steps_apart(qdq, content, ranges, held_out, inputs, {}).max() == 0
    assert read_tflite(content).integer_coverage >= 0.95


def test_table_has_every_architecture_when_printed(
    judged_architecture: Judged, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [judged_architecture(name).row for name in ARCHITECTURES]
    with capsys.disabled():
        print(f"\n{HEADER}", *rows, f"{len(rows)} architectures with seeded weights", sep="\n")
    assert len(rows) >= 19
