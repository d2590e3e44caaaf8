"""Random numbers in the place of samples: to see whether a network builds at all, never to ship what comes out.

Ranges from noise fit no real input. A build refuses this data set unless ``--allow-random-calibration`` is given or the
recipe has ``calibration.allow_random``, and then the bundle says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import RecipeError
from edgeopt.samples import Sample, Split
from edgeopt.settings import InputSettings

NUM_SAMPLES = 10_000
_SEEDS: Mapping[Split, int] = {"train": 0, "calibration": 1, "held_out": 2}


@dataclass(frozen=True)
class Noise:
    """A split, every sample drawn from a seed of its own when it is asked for."""

    split: Split
    inputs: Mapping[str, InputSettings]

    def __len__(self) -> int:
        """Return how many there are at most."""
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> Sample:
        """Return one sample; ``IndexError`` past the end."""
        if not 0 <= index < NUM_SAMPLES:
            raise IndexError(f"sample {index} of {NUM_SAMPLES}")
        random = np.random.default_rng((_SEEDS[self.split], index))
        drawn = {name: _drawn(random, settings) for name, settings in self.inputs.items()}
        return Sample(f"random/{self.split}/{index}", drawn)


def open_dataset(split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> Noise:
    """Return a split for whatever inputs a network has.

    Raises:
        RecipeError: there are options.
    """
    if options:
        raise RecipeError(f"random: unknown option {next(iter(options))!r}", hint="random numbers have no options")
    return Noise(split, inputs)


def _drawn(random: np.random.Generator, settings: InputSettings) -> NDArray[np.float32]:
    if settings.value_range is None:
        return random.standard_normal(settings.shape, np.float32)
    return random.uniform(*settings.value_range, settings.shape).astype(np.float32)
