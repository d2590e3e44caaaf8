"""Fashion-MNIST: read the four files that Debian's package has, and split them once and for all.

The 10,000 test images are held out. Of the 60,000 others every thirtieth of each class calibrates and is not trained
on, so that ranges are those of unseen images: 58,000 train, 2,000 calibrate. All splits go class by class in turn, so
that every prefix is balanced; the option ``num_train`` takes such a prefix of the training images.

The files are IDX: a magic number with the element type and the number of axes, each axis' size as a big-endian uint32,
then the bytes. Source: LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/, "file formats".
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, RecipeError, did_you_mean
from edgeopt.grey_images import GreyImages, only_grey_image, place_in_class, rows_by_turns
from edgeopt.samples import Split
from edgeopt.settings import InputSettings

_OPTIONS = ("folder", "num_train")
_FILES: Mapping[Split, str] = {"train": "train", "calibration": "train", "held_out": "t10k"}
_CALIBRATION_EVERY = 30
_BYTES = 0x08  # the element type of IDX for unsigned bytes


def open_dataset(split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> GreyImages:
    """Return a split for a network with one image input, ``(1, 1, 28, 28)`` or ``(1, 28, 28, 1)``.

    Args:
        split: ``train`` (58,000), ``calibration`` (2,000 others) or ``held_out`` (the 10,000 test images).
        inputs: the network's one input.
        options: ``folder`` with the four files, and ``num_train``, to train on fewer images.

    Raises:
        DataError: the network has other inputs, or a file is missing or damaged.
        RecipeError: an option is unknown or has a wrong value.
    """
    for key in options:
        if key not in _OPTIONS:
            raise RecipeError(f"fashion_mnist: unknown option {key!r}", hint=did_you_mean(key, _OPTIONS))
    name, shape = only_grey_image("fashion_mnist", inputs)
    folder, file = Path(str(options["folder"])), _FILES[split]
    labels = _read(folder / f"{file}-labels-idx1-ubyte.gz", num_axes=1).astype(np.int64)
    pixels = _read(folder / f"{file}-images-idx3-ubyte.gz", num_axes=3).reshape(-1, 28 * 28)
    if len(labels) != len(pixels):
        raise DataError(f"fashion_mnist: {folder} has {len(pixels)} {file} images and {len(labels)} labels")
    rows = _rows(split, labels)
    if split == "train":
        rows = rows[: _num_train(options, len(rows))]
    return GreyImages(f"fashion_mnist/{file}", name, shape, pixels[rows], labels[rows], rows)


def _rows(split: Split, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of a split in its file, class by class in turn."""
    by_turns = rows_by_turns(labels)
    if split == "held_out":
        return by_turns
    calibrates = place_in_class(labels)[by_turns] % _CALIBRATION_EVERY == 0
    rows: NDArray[np.int64] = by_turns[calibrates if split == "calibration" else ~calibrates]
    return rows


def _num_train(options: Mapping[str, object], available: int) -> int:
    number = options.get("num_train", available)
    if type(number) is not int or not 1 <= number <= available:
        raise RecipeError(f"fashion_mnist: num_train must be a number of images in [1, {available}], got {number!r}")
    return number


def _read(path: Path, num_axes: int) -> NDArray[np.uint8]:
    """Return what a packed IDX file of bytes holds.

    Raises:
        DataError: the file is missing, damaged or something else.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + num_axes}I", content)
        if magic != (_BYTES << 8) + num_axes:
            raise ValueError(f"magic number {magic:#010x}")
        return np.frombuffer(content, np.uint8, offset=4 * (1 + num_axes)).reshape(shape)
    except FileNotFoundError as error:
        raise DataError(
            f"fashion_mnist: there is no {path}", hint="calibration.options.folder is where the four .gz files lie"
        ) from error
    except (gzip.BadGzipFile, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"fashion_mnist: {path} is no IDX file of bytes with {num_axes} axes, or damaged: {error}",
            hint="apt install --reinstall dataset-fashion-mnist",
        ) from error
