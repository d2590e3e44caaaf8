"""Samples: what calibration, training and the verdict are fed, always one at a time and by name.

A folder in ``calibration/`` has ``calibration.toml`` (what, from where, which licence, which preprocessing) and
``preprocess.py`` with one function, ``open_dataset``, that satisfies :class:`OpenDataset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.settings import InputSettings

Split = Literal["train", "calibration", "held_out"]


@dataclass(frozen=True)
class Sample:
    """One sample: preprocessed arrays by input name, each with a batch of 1 first, and its label if it has one.

    A label is a class, or an array without a batch axis: a mask of classes ``(H, W)``, below 0 where nothing is known,
    or what the network should answer.
    """

    name: str
    inputs: Mapping[str, NDArray[Any]]
    label: int | NDArray[np.generic] | None = None

    @property
    def class_number(self) -> int | None:
        """Return the label if it is a class, NumPy's integers among them."""
        found = np.asarray(self.label)
        return int(found) if found.ndim == 0 and np.issubdtype(found.dtype, np.integer) else None


class Dataset(Protocol):
    """A split of a data set; samples are made when asked for, so that memory does not grow with their number."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; ``IndexError`` past the end."""


class OpenDataset(Protocol):
    """The function that ``preprocess.py`` defines under the name ``open_dataset``."""

    def __call__(self, split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> Dataset:
        """Return a split, its samples shaped for ``inputs``; ``options`` come from the recipe as they are."""
