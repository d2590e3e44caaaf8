"""Grey images of 28 x 28 pixels with a class each, held in memory: MNIST and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.samples import Sample
from edgeopt.settings import InputSettings

_SHAPES = ((1, 1, 28, 28), (1, 28, 28, 1))
_PIXEL_MAX = 255


@dataclass(frozen=True)
class GreyImages:
    """A split: ``pixels`` uint8 ``(N, 784)``, ``labels`` ``(N,)``, and the ``rows`` ``(N,)`` that they are named by."""

    name: str
    input_name: str
    input_shape: tuple[int, ...]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Return one image in [0, 1] as float32 of ``input_shape``."""
        image = self.pixels[index].astype(np.float32).reshape(self.input_shape) / np.float32(_PIXEL_MAX)
        return Sample(f"{self.name}/{self.rows[index]:04d}", {self.input_name: image}, int(self.labels[index]))


def only_grey_image(dataset: str, inputs: Mapping[str, InputSettings]) -> tuple[str, tuple[int, ...]]:
    """Return name and shape of the network's one input, ``(1, 1, 28, 28)`` or ``(1, 28, 28, 1)``.

    Raises:
        DataError: naming the data set, if the network has other inputs.
    """
    fits = len(inputs) == 1 and next(iter(inputs.values())).shape in _SHAPES
    if not fits:
        found = ", ".join(f"{name} {list(settings.shape)}" for name, settings in inputs.items())
        raise DataError(
            f"{dataset}: the network's inputs are {found or 'none'}, expected one of shape {list(_SHAPES[0])}",
            hint="write [model.inputs.image] with shape = [1, 1, 28, 28]",
        )
    name, settings = next(iter(inputs.items()))
    return name, settings.shape


def place_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row how many rows of its class come before it, ``(N,)``."""
    place = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        place[of_class] = np.arange(len(of_class))
    return place


def rows_by_turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all rows, class by class in turn (0, 1, ..., 9, 0, 1, ...), so that every prefix is balanced."""
    return np.lexsort((labels, place_in_class(labels)))
