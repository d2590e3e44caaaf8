"""The photo set: fixed crops, disjoint by photo, normalized as asked."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from edgeopt.calibration.photos import preprocess
from edgeopt.calibration.photos.preprocess import crop_box, open_dataset
from edgeopt.errors import DataError, MissingDependencyError, RecipeError
from edgeopt.samples import Dataset, Split
from edgeopt.settings import InputSettings

NCHW = {"image": InputSettings((1, 3, 32, 48))}
NHWC = {"image": InputSettings((1, 32, 48, 3), layout="NHWC")}
PLAIN = {"range": "0-255"}


def photos_of(dataset: Dataset, count: int) -> list[str]:
    return [dataset[index].name.rsplit("-", 1)[0] for index in range(count)]


def test_open_dataset_never_shares_a_photo_when_splits_differ() -> None:
    calibration = photos_of(open_dataset("calibration", NCHW, PLAIN), 16)
    held_out = photos_of(open_dataset("held_out", NCHW, PLAIN), 16)
    assert len(set(calibration)) == 4
    assert len(set(held_out)) == 3
    assert not set(calibration) & set(held_out)


def test_open_dataset_covers_every_photo_when_few_samples_are_taken() -> None:
    assert photos_of(open_dataset("calibration", NCHW, PLAIN), 5) == [
        "china", "astronaut", "flower", "rocket", "china"
    ]  # fmt: skip


@pytest.mark.parametrize("split", ["calibration", "held_out"])
def test_open_dataset_gives_distinct_samples_when_all_are_taken(split: Split) -> None:
    dataset = open_dataset(split, NCHW, PLAIN)
    samples = [dataset[index] for index in range(len(dataset))]
    assert len(samples) == 512
    assert len({sample.name for sample in samples}) == 512
    assert len({sample.inputs["image"].tobytes() for sample in samples}) == 512
    with pytest.raises(IndexError):
        dataset[512]


def test_open_dataset_gives_the_same_bytes_when_opened_twice_and_read_backwards() -> None:
    first, second = (open_dataset("held_out", NCHW, PLAIN) for _ in range(2))
    forward = [first[index].inputs["image"].tobytes() for index in range(9)]
    backward = [second[index].inputs["image"].tobytes() for index in reversed(range(9))]
    assert forward == backward[::-1]


def test_open_dataset_follows_shape_and_layout_when_the_input_is_nhwc() -> None:
    nchw = open_dataset("held_out", NCHW, PLAIN)[3].inputs["image"]
    nhwc = open_dataset("held_out", NHWC, PLAIN)[3].inputs["image"]
    assert nchw.shape == (1, 3, 32, 48)
    assert nhwc.shape == (1, 32, 48, 3)
    assert nchw.dtype == nhwc.dtype == np.float32
    assert nchw.flags.c_contiguous
    np.testing.assert_array_equal(nchw, nhwc.transpose(0, 3, 1, 2))


def test_open_dataset_is_red_green_blue_when_the_photo_is_an_orange_flower() -> None:
    flower = open_dataset("calibration", NCHW, PLAIN)[2]
    assert flower.name == "flower-000"
    red, green, blue = flower.inputs["image"][0, :, 16, 24]  # its middle
    assert red > green > blue


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda pixels: pixels / 255),
        ({"range": "0-255", "mean": 127.0, "std": 128.0}, lambda pixels: (pixels - 127) / 128),
        (
            {"range": "0-1", "mean": [0.5, 0.25, 0.0], "std": (0.5, 1, 2)},
            lambda pixels: (pixels / 255 - [0.5, 0.25, 0.0]) / [0.5, 1, 2],
        ),
    ],
)
def test_open_dataset_normalizes_as_the_formula_says_when_given_options(
    options: Mapping[str, object], expected: object
) -> None:
    pixels = open_dataset("held_out", NHWC, PLAIN)[1].inputs["image"].astype(np.float64)
    actual = open_dataset("held_out", NHWC, options)[1].inputs["image"]
    assert callable(expected)
    np.testing.assert_allclose(actual, expected(pixels), atol=2e-6)
    assert pixels.max() > 200
    np.testing.assert_array_equal(pixels, np.rint(pixels))


def test_open_dataset_mirrors_every_second_crop_when_it_cuts() -> None:
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "data/chelsea.png") as photo:
        for index in (1, 2):
            box = crop_box(index, photo.size, (48, 32), smallest=0.6)
            crop = photo.resize((48, 32), Image.Resampling.BICUBIC, box=box)
            expected = np.asarray(crop, np.float32)[:, :: -1 if index == 1 else 1]
            sample = open_dataset("held_out", NHWC, PLAIN)[3 * index]
            assert sample.name == f"chelsea-{index:03}"
            np.testing.assert_array_equal(sample.inputs["image"][0], expected)


def test_crop_box_is_the_largest_centred_crop_when_index_is_zero() -> None:
    assert crop_box(0, (640, 400), (224, 224), smallest=0.5) == pytest.approx((120, 0, 520, 400))
    assert crop_box(0, (640, 400), (200, 100), smallest=0.5) == pytest.approx((0, 40, 640, 360))


def test_crop_box_stays_inside_when_the_size_is_rounded_up() -> None:
    left, top, right, bottom = crop_box(0, (741, 500), (120, 120), smallest=0.5)  # 500 / 120 * 120 is over 500
    assert 0 <= left < right <= 741
    assert (top, bottom) == (0, 500)


def test_crop_box_stays_inside_and_spreads_when_index_grows() -> None:
    boxes = np.array([crop_box(index, (640, 400), (224, 224), smallest=0.4) for index in range(171)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 640 + 1e-9
    assert bottom.max() <= 400 + 1e-9
    sides = (right - left) / 400
    np.testing.assert_allclose(right - left, bottom - top)
    assert 0.4 <= sides.min() < 0.42
    assert sides.max() == 1.0
    assert abs(np.mean(sides) - 0.7) < 0.02
    assert left.min() < 20
    assert right.max() > 620


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"men": 1.0}, "did you mean 'mean'"),
        ({"range": "0-100"}, "'0-1' or '0-255', got '0-100'"),
        ({"std": 0.0}, "'std' must be above 0"),
        ({"std": [1.0, -1.0, 1.0]}, "'std' must be above 0"),
        ({"mean": [1.0, 2.0]}, "one number or three"),
        ({"mean": "127"}, "one number or three"),
        ({"mean": True}, "one number or three"),
        ({"mean": float("nan")}, "one number or three"),
        ({"std": []}, "one number or three"),
    ],
)
def test_open_dataset_refuses_the_option_when_it_makes_no_sense(options: Mapping[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        open_dataset("calibration", NCHW, options)


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": InputSettings((1, 1, 28, 28))},
        {"image": InputSettings((1, 3, 32, 48), layout="NHWC")},
        {"image": InputSettings((1, 3, 32, 48), layout="any")},
        {"left": InputSettings((1, 3, 8, 8)), "right": InputSettings((1, 3, 8, 8))},
        {},
    ],
)
def test_open_dataset_refuses_the_network_when_it_takes_no_rgb_image(inputs: Mapping[str, InputSettings]) -> None:
    with pytest.raises(DataError, match=r"RGB image|one image input"):
        open_dataset("calibration", inputs, {})


def test_open_dataset_trains_on_no_held_out_photo_and_no_label_when_opened() -> None:
    names = {split: {photo.name for photo in preprocess._PHOTOS[split]} for split in get_args(Split)}

    assert not names["held_out"] & (names["train"] | names["calibration"])
    assert open_dataset("train", NCHW, {})[0].label is None


@pytest.mark.parametrize(
    ("module", "package"), [("PIL", "Pillow"), ("skimage", "scikit-image"), ("sklearn", "scikit-learn")]
)
def test_open_dataset_says_what_to_install_when_a_package_is_missing(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "find_spec", lambda name: None if name == module else find_spec(name))
    with pytest.raises(MissingDependencyError, match=package) as caught:
        open_dataset("calibration", NCHW, {})
    assert "edgeopt[demo]" in str(caught.value)


def test_open_dataset_names_the_file_when_a_package_no_longer_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = preprocess.Photo("gone", "skimage", "data/gone.png")
    monkeypatch.setitem(preprocess._PHOTOS, "held_out", (gone,))
    with pytest.raises(DataError, match=r"'skimage' has no data/gone\.png"):
        open_dataset("held_out", NCHW, {})
