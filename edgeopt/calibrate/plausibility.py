"""Whether samples can be what the network was trained on: looked at one by one, judged together, in numbers.

What is noticed is what people get wrong: pixels of 0 to 255 where 0 to 1 was meant, a normalization that is done twice,
channels first where they are last, one image many times, noise in the place of photos. Nothing is changed and nothing
is refused; each finding says what was seen and what was expected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError
from edgeopt.samples import Sample
from edgeopt.settings import InputSettings

_FEW_SAMPLES = 8
_MOST_COMPARED = 512  # samples that are compared with one another, chosen by a hash of what they hold
_NUM_POINTS = 256  # values of a sample that stand for it in this comparison
_CROP = 64  # pixels of each side that tell how smooth an image is

# Two samples are near-identical if they differ by less than this share of their own spread. Neighbouring frames of a
# still scene differ by up to 0.08, two crops of one photo by 0.4 and more.
_NEAR = 0.1
# Squared difference of neighbours over twice the variance: 1 for noise, 0.01 to 0.2 for photos, drawings, spectrograms.
_ROUGH = 0.8
# Bytes of an image that are read in the wrong layout are rougher by 1.7 to 20 times.
_ROUGHER = 1.5
_TOLERANCE = 0.05  # of the declared width: interpolation may overshoot
_LEAST_FILLED = 0.1  # of the declared width, by all samples together
_MANY = 0.5
_LEAST_JUDGED = 30  # with fewer held-out samples a good network may be no better than chance by chance


@dataclass(frozen=True)
class _Look:
    """What is remembered of one input of one sample; how rough it is, is NaN for what is no image or does not vary."""

    minimum: float
    maximum: float
    spread: float
    least_rough: float
    rough: float
    rough_in_other_layout: float


class Survey:
    """Looks at samples as they pass by; less than 3 kB of each is kept.

    Args:
        inputs: the network's inputs; ``layout`` says which are images, ``value_range`` what was declared.
    """

    def __init__(self, inputs: Mapping[str, InputSettings]) -> None:
        self._inputs = inputs
        self._looks: dict[str, list[_Look]] = {name: [] for name in inputs}
        self._points: list[NDArray[np.float64]] = []

    def passing(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield every sample after a look at it."""
        for sample in samples:
            for name, settings in self._inputs.items():
                self._looks[name].append(_look(sample.inputs[name], settings))
            self._points.append(np.concatenate([_points(sample.inputs[name]) for name in self._inputs]))
            yield sample

    def findings(self) -> tuple[str, ...]:
        """Return what cannot be right, one line each; the same in whatever order the samples came."""
        found = [
            finding
            for name, settings in self._inputs.items()
            for finding in _findings(name, settings, self._looks[name])
        ]
        return (*found, *_repeated(self._points), *_too_few(len(self._points)))


def refuse_collapse(
    held_out: Mapping[str, NDArray[np.generic]], outputs: Sequence[str], warnings: Sequence[str]
) -> None:
    """Refuse samples that look wrong and on which the float network itself is no better than chance.

    Args:
        held_out: ``float/NAME`` ``(N, C)``, the float network's answers, and ``labels`` ``(N,)`` if there are any.
        outputs: names of outputs.
        warnings: what was found in the calibration samples; without any nothing is refused.

    Raises:
        DataError: with the warnings.
    """
    labels, answers = held_out.get("labels"), held_out[f"float/{outputs[0]}"]
    if not warnings or labels is None or labels.ndim != 1 or answers.ndim != 2 or labels.dtype.kind not in "iu":
        return
    count, num_classes = answers.shape
    if count < _LEAST_JUDGED:
        return
    accuracy, chance = float((answers.argmax(1) == labels).mean()), 1 / num_classes
    if accuracy <= chance + 3 * np.sqrt(chance * (1 - chance) / count):
        raise DataError(
            f"the float network itself is right on {accuracy:.1%} of {count} held-out samples, where chance gives "
            f"{chance:.1%}, and the samples look wrong: {'; '.join(warnings)}",
            hint="mend preprocess.py until the float network answers as well as when it was trained",
        )


def _look(array: NDArray[np.float32], settings: InputSettings) -> _Look:
    least = rough = other = np.nan
    if settings.layout != "any":
        first = settings.layout == "NCHW"
        along = _roughness(array[0], channels_first=first)
        least, rough = min(along), sum(along) / 2
        other = sum(_roughness(_in_other_layout(array, channels_first=first)[0], channels_first=not first)) / 2
    return _Look(float(array.min()), float(array.max()), float(array.std(dtype=np.float64)), least, rough, other)


def _in_other_layout(array: NDArray[np.float32], *, channels_first: bool) -> NDArray[np.float32]:
    """Read the same bytes as an image of the other layout."""
    if channels_first:
        batch, channels, height, width = array.shape
        return array.reshape(batch, height, width, channels)
    batch, height, width, channels = array.shape
    return array.reshape(batch, channels, height, width)


def _roughness(image: NDArray[np.float32], *, channels_first: bool) -> tuple[float, float]:
    """Return how little neighbours resemble each other, along height and along width; NaN if no pixels differ."""
    pixels = (image.transpose(1, 2, 0) if channels_first else image).astype(np.float64)
    top, left = (max(0, (size - _CROP) // 2) for size in pixels.shape[:2])
    crop = pixels[top : top + _CROP, left : left + _CROP]
    variance = float(crop.var(axis=(0, 1)).mean())
    if variance == 0 or min(crop.shape[:2]) < 2:
        return np.nan, np.nan
    down, across = (float((np.diff(crop, axis=axis) ** 2).mean()) / (2 * variance) for axis in (0, 1))
    return down, across


def _points(array: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return evenly spaced values, in units of the spread of all."""
    flat = array.reshape(-1)
    chosen = flat[:: -(-flat.size // _NUM_POINTS)].astype(np.float64)
    spread = float(flat.std(dtype=np.float64))
    return chosen / spread if spread > 0 else chosen


def _findings(name: str, settings: InputSettings, looks: Sequence[_Look]) -> Iterator[str]:
    low, high = min(look.minimum for look in looks), max(look.maximum for look in looks)
    if settings.value_range is not None:
        yield from _out_of_range(name, low, high, settings.value_range)
    constant = sum(look.spread == 0 for look in looks)
    if settings.layout != "any" and constant > _MANY * len(looks):  # what is no image may be: a mask, one number
        yield f"input {name!r} is one value everywhere in {constant} of {len(looks)} samples"
    least, rough = _median([look.least_rough for look in looks]), _median([look.rough for look in looks])
    other = _median([look.rough_in_other_layout for look in looks])
    if settings.layout != "any" and other * _ROUGHER < rough and _channels(settings) in (3, 4):
        yield (
            f"input {name!r} is declared {settings.layout}, but its bytes make a smoother image in the other layout: "
            f"neighbours differ by {rough:.2f} of the variance as declared, by {other:.2f} the other way; was it "
            "reshaped where it should be transposed?"
        )
    elif least > _ROUGH:
        yield (
            f"input {name!r} looks like noise: neighbouring pixels differ by {least:.2f} of the variance, those of "
            "photos and drawings by 0.01 to 0.2; ranges from noise are not those of real samples"
        )


def _out_of_range(name: str, low: float, high: float, declared: tuple[float, float]) -> Iterator[str]:
    width = declared[1] - declared[0]
    seen = f"input {name!r} lies in [{low:.4g}, {high:.4g}], declared is [{declared[0]:.4g}, {declared[1]:.4g}]"
    times = (high - low) / width
    if low < declared[0] - _TOLERANCE * width or high > declared[1] + _TOLERANCE * width:
        likely = (
            "pixels of 0 to 255 where 0 to 1 was meant" if times > 50 else "another normalization, or one done twice"
        )
        yield f"{seen}: {times:.3g} times as wide; {likely}?"
    elif times < _LEAST_FILLED:
        yield f"{seen}: {times:.2%} of it is used; normalized twice, or 0 to 1 where 0 to 255 was meant?"


def _repeated(points: Sequence[NDArray[np.float64]]) -> Iterator[str]:
    chosen = sorted(points, key=lambda item: hashlib.sha256(item.tobytes()).digest())[:_MOST_COMPARED]
    stacked = np.stack(chosen)
    squares = (stacked**2).mean(1)
    distances = squares[:, np.newaxis] + squares - 2 * (stacked @ stacked.T) / stacked.shape[1]
    np.fill_diagonal(distances, np.inf)
    repeated = int((distances.min(1) < _NEAR**2).sum())
    if repeated > _MANY * len(chosen):
        yield (
            f"{repeated} of {len(chosen)} samples differ from another one by less than {_NEAR:.0%} of their spread: "
            "repeats add nothing to the ranges"
        )


def _too_few(count: int) -> Iterator[str]:
    if count < _FEW_SAMPLES:
        yield f"only {count} samples set the ranges; with so few the largest values are met by chance"


def _median(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else np.nan


def _channels(settings: InputSettings) -> int:
    return settings.shape[1] if settings.layout == "NCHW" else settings.shape[3]
