"""Pictures of shapes, and what is in them: of each pixel, 0 ground, 1 disc, 2 square, 3 triangle, or of the whole.

The option ``label = "kinds"`` makes a class of the kinds that can be seen: 1 for a disc, 2 for a square and 4 for a
triangle, added up. Left out, a label is the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeopt.samples import Dataset, Sample, Split
from edgeopt.settings import InputSettings

_COUNT = 512
_FIRST_SEED = {"train": 0, "calibration": _COUNT, "held_out": 2 * _COUNT}
# Each kind of shape has a colour of its own, more or less.
_COLOURS = np.array([[0.85, 0.3, 0.25], [0.3, 0.75, 0.3], [0.3, 0.35, 0.85]], np.float32)


@dataclass(frozen=True)
class Shapes:
    """``_COUNT`` pictures, each from its own seed."""

    name: str
    size: tuple[int, int]  # height, width
    first_seed: int
    whole: bool

    def __len__(self) -> int:
        """Return the number of pictures."""
        return _COUNT

    def __getitem__(self, index: int) -> Sample:
        """Return one picture with its label."""
        picture, mask = drawn(self.first_seed + index, *self.size)
        label = kinds_of(mask) if self.whole else mask
        return Sample(f"picture {self.first_seed + index}", {self.name: picture[np.newaxis]}, label)


def open_dataset(split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> Dataset:
    """Return a split for a network with one picture as its input."""
    ((name, given),) = inputs.items()
    return Shapes(name, (given.shape[2], given.shape[3]), _FIRST_SEED[split], options.get("label") == "kinds")


def drawn(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture ``(3, H, W)``, float32 in 0 to 1, and its mask ``(H, W)``, int64."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width].astype(np.float32)
    waves = np.sin(across / random.uniform(3, 9)) * np.cos(down / random.uniform(3, 9))
    picture = random.uniform(0.3, 0.7, (3, 1, 1)) + 0.15 * waves
    mask = np.zeros((height, width), np.int64)
    for _ in range(3):
        kind, size = int(random.integers(1, 4)), random.uniform(0.1, 0.22) * min(height, width)
        inside = _inside(
            kind, down - random.uniform(0.15, 0.85) * height, across - random.uniform(0.15, 0.85) * width, size
        )
        mask[inside] = kind
        picture[:, inside] = (_COLOURS[kind - 1] + random.normal(0, 0.12, 3))[:, np.newaxis]
    picture += random.normal(0, 0.04, picture.shape)
    return picture.clip(0, 1).astype(np.float32), mask


def kinds_of(mask: np.ndarray) -> int:
    """Return which kinds of shape a mask shows, 1 to 7."""
    return sum(1 << (kind - 1) for kind in (1, 2, 3) if (mask == kind).any())


def _inside(kind: int, down: np.ndarray, across: np.ndarray, size: float) -> np.ndarray:
    """Return the pixels of a shape, from their distances to its middle."""
    if kind == 1:
        return down**2 + across**2 < size**2
    if kind == 2:
        return np.maximum(np.abs(down), np.abs(across)) < 0.85 * size
    return (np.abs(down) < 0.8 * size) & (np.abs(across) < 0.6 * (down + 0.8 * size))
