"""Architectures with seeded random weights: float, int8, and no transposes but the model's own."""

from __future__ import annotations

import pytest
from architectures import ARCHITECTURES, RECURRENT, TRANSFORMERS
from judging import HEADER, Judged

pytestmark = [
    pytest.mark.slow,
    # What torch says about itself while it exports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MAX_FLOAT_ERROR = 1e-4  # of the output's range

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
def test_int8_file_answers_as_onnxruntime_bit_for_bit_when_quantized(name: str, judged_architecture: Judged) -> None:
    facts = judged_architecture(name)
    assert (facts.equal_share, facts.worst_steps) == (1.0, 0)


def test_table_has_every_architecture_when_printed(
    judged_architecture: Judged, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [judged_architecture(name).row for name in ARCHITECTURES]
    with capsys.disabled():
        print(f"\n{HEADER}", *rows, f"{len(rows)} architectures with seeded weights", sep="\n")
    assert len(rows) >= 19
