"""Samples for networks with random weights: ranges as pictures have them, and a number of its own for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeopt.samples import Dataset, Sample, Split
from edgeopt.settings import InputSettings

_COUNT = 100
_FIRST_SEED = {"calibration": 0, "held_out": _COUNT, "train": 2 * _COUNT}


@dataclass(frozen=True)
class Noise:
    """``_COUNT`` samples, each from its own seed."""

    inputs: Mapping[str, InputSettings]
    first_seed: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return _COUNT

    def __getitem__(self, index: int) -> Sample:
        """Return one sample, float32 in [-2, 2]."""
        random = np.random.default_rng(self.first_seed + index)
        arrays = {name: _smooth(random, given.shape) for name, given in self.inputs.items()}
        return Sample(f"seed {self.first_seed + index}", arrays)


def open_dataset(split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> Dataset:
    """Return a split; no options are known."""
    return Noise(inputs, _FIRST_SEED[split])


def _smooth(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    coarse = random.normal(size=(*shape[:2], *(-(-size // 8) for size in shape[2:])))
    for axis, size in enumerate(shape[2:], start=2):
        coarse = coarse.repeat(8, axis).take(range(size), axis)
    return (coarse + 0.3 * random.normal(size=shape)).clip(-2, 2).astype(np.float32)
