"""Fashion-MNIST: the files of Debian's package, split for good, balanced in every prefix."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeopt.calibration.fashion_mnist import preprocess
from edgeopt.calibration.fashion_mnist.preprocess import open_dataset
from edgeopt.dataset import find_dataset
from edgeopt.errors import DataError, MissingDependencyError, RecipeError
from edgeopt.samples import Split
from edgeopt.settings import CalibrationSettings, InputSettings

IMAGE = {"image": InputSettings((1, 1, 28, 28))}


@pytest.mark.parametrize(("split", "count"), [("train", 58_000), ("calibration", 2000), ("held_out", 10_000)])
def test_open_dataset_is_balanced_in_every_prefix_when_opened(fashion_mnist: Path, split: Split, count: int) -> None:
    dataset = open_dataset(split, IMAGE, {"folder": fashion_mnist})

    assert len(dataset) == count
    assert Counter(dataset.labels.tolist()) == dict.fromkeys(range(10), count // 10)
    assert [dataset[index].label for index in range(20)] == [*range(10), *range(10)]
    with pytest.raises(IndexError):
        dataset[count]


def test_open_dataset_never_shares_an_image_when_splits_differ(fashion_mnist: Path) -> None:
    splits: tuple[Split, ...] = ("train", "calibration", "held_out")
    images = [set(map(bytes, open_dataset(split, IMAGE, {"folder": fashion_mnist}).pixels)) for split in splits]

    assert len(set.union(*images)) == 58_000 + 2000 + 10_000


def test_open_dataset_gives_what_the_file_has_when_read_another_way(fashion_mnist: Path) -> None:
    sample = open_dataset("held_out", IMAGE, {"folder": fashion_mnist})[19]  # the second of class 9, ankle boots
    labels = gzip.decompress((fashion_mnist / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    row = [number for number, label in enumerate(labels) if label == 9][1]
    start = 16 + 784 * row
    pixels = gzip.decompress((fashion_mnist / "t10k-images-idx3-ubyte.gz").read_bytes())[start : start + 784]

    image = sample.inputs["image"]
    assert sample.name == f"fashion_mnist/t10k/{row:04d}"
    assert (image.dtype, image.shape) == (np.float32, (1, 1, 28, 28))
    assert image.ravel().tolist() == [float(np.float32(pixel) / np.float32(255)) for pixel in pixels]


def test_open_dataset_trains_on_a_balanced_part_when_num_train_says_so(fashion_mnist: Path) -> None:
    options = {"folder": fashion_mnist, "num_train": 1000}

    assert Counter(open_dataset("train", IMAGE, options).labels.tolist()) == dict.fromkeys(range(10), 100)
    assert len(open_dataset("held_out", IMAGE, options)) == 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 58_001}, r"num_train must be a number of images in \[1, 58000\], got 58001"),
        ({"num_train": 0}, "got 0"),
        ({"num_train": True}, "got True"),
        ({"augment": True}, "unknown option 'augment'"),
    ],
)
def test_open_dataset_refuses_when_an_option_is_wrong(
    fashion_mnist: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        open_dataset("train", IMAGE, {"folder": fashion_mnist, **options})


def test_open_dataset_refuses_when_the_input_is_no_grey_image(fashion_mnist: Path) -> None:
    with pytest.raises(DataError, match=r"fashion_mnist: .*expected one of shape \[1, 1, 28, 28\]"):
        open_dataset("train", {"image": InputSettings((1, 3, 28, 28))}, {"folder": fashion_mnist})


IDX = b"\0\0\x08\x01" + (2).to_bytes(4, "big") + b"\1\2"
DAMAGED = {
    "it is cut": gzip.compress(IDX)[:-6],
    "it is not packed": IDX,
    "a label is missing": gzip.compress(IDX[:-1]),
    "it is empty": gzip.compress(b""),
    "its numbers are not bytes": gzip.compress(b"\0\0\x0d\x01" + IDX[4:]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_open_dataset_refuses_a_file_when(case: str, tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(DAMAGED[case])

    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz is no IDX file of bytes with 1 axes, or damaged"):
        open_dataset("train", IMAGE, {"folder": tmp_path})


def test_open_dataset_refuses_when_images_and_labels_differ_in_number(tmp_path: Path) -> None:
    pictures = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (1, 28, 28)) + bytes(784)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(IDX))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(pictures))

    with pytest.raises(DataError, match="has 1 train images and 2 labels"):
        open_dataset("train", IMAGE, {"folder": tmp_path})


def test_find_dataset_says_what_to_install_when_the_package_is_missing(tmp_path: Path) -> None:
    facts = Path(str(preprocess.__file__)).with_name("calibration.toml").read_text()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "calibration.toml").write_text(facts.replace("/usr/share/datasets", "/nowhere"))

    with pytest.raises(MissingDependencyError, match="there is no /nowhere/fashion-mnist") as caught:
        find_dataset(CalibrationSettings("copy"), tmp_path)
    assert "apt install dataset-fashion-mnist" in str(caught.value.hint)


def test_find_dataset_reads_another_folder_when_the_recipe_names_it(fashion_mnist: Path, tmp_path: Path) -> None:
    (tmp_path / "clothes").symlink_to(fashion_mnist)
    found = find_dataset(CalibrationSettings("fashion_mnist", options={"folder": "clothes"}), tmp_path)

    assert len(found.open("calibration", IMAGE)) == 2000
    assert {path.name for path in found.files()} >= {"t10k-labels-idx1-ubyte.gz", "train-images-idx3-ubyte.gz"}
