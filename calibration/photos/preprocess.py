"""Natural photos as samples: many fixed crops of each photo, resized and normalized the way the network was trained.

Sample ``i`` is crop ``i // P`` of photo ``i % P`` for ``P`` photos, so any first N samples cover all photos evenly, and
a sample does not depend on how many are asked for. Crop 0 is the largest centred one; the others follow an additive
recurrence, which covers places and sizes evenly without a random generator.

Source of the recurrence: Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018 (generalized golden
ratio in three dimensions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, MissingDependencyError, RecipeError, did_you_mean
from edgeopt.samples import Sample, Split
from edgeopt.settings import InputSettings

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_SAMPLES = 512  # in each split; later crops of a photo add little that is new

# The smallest crop as a share of the largest that fits. Calibration looks close, which shows the network more kinds of
# patches, and what learns from a teacher's answers has use for many; a held-out sample has to show its subject, or
# agreement on its class would say nothing.
SMALLEST_CROP: dict[Split, float] = {"train": 0.2, "calibration": 0.4, "held_out": 0.6}
_PIXEL_MAX = 255.0

# The solution of g**4 == g + 1; its negative powers are the steps of the recurrence.
_G = 1.2207440846057596
_STEPS = (1 / _G, 1 / _G**2, 1 / _G**3)


@dataclass(frozen=True)
class Photo:
    """One picture inside an installed package."""

    name: str
    package: str
    path: str


_NOT_HELD_OUT = (
    Photo("china", "sklearn", "datasets/images/china.jpg"),
    Photo("astronaut", "skimage", "data/astronaut.png"),
    Photo("flower", "sklearn", "datasets/images/flower.jpg"),
    Photo("rocket", "skimage", "data/rocket.jpg"),
)
_PHOTOS: dict[Split, tuple[Photo, ...]] = {
    "train": _NOT_HELD_OUT,
    "calibration": _NOT_HELD_OUT,
    "held_out": (
        Photo("chelsea", "skimage", "data/chelsea.png"),
        Photo("coffee", "skimage", "data/coffee.png"),
        Photo("motorcycle", "skimage", "data/motorcycle_left.png"),
    ),
}


@dataclass(frozen=True)
class Normalization:
    """What the recipe's options say: ``(value - mean) / std`` with values in ``range``."""

    range: Literal["0-1", "0-255"] = "0-1"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 values for pixels ``(H, W, 3)``."""
        values = pixels.astype(np.float32)
        if self.range == "0-1":
            values /= np.float32(_PIXEL_MAX)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normalized: NDArray[np.float32] = (values - mean) / std
        return normalized


@dataclass(frozen=True)
class PhotoCrops:
    """A split; photos are decoded once, when first needed, and crops are made on access."""

    photos: tuple[Photo, ...]
    smallest_crop: float
    input_name: str
    size: tuple[int, int]  # width, height
    layout: Literal["NCHW", "NHWC"]
    normalization: Normalization
    _decoded: dict[str, Image] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """Return the number of samples."""
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> Sample:
        """Return one crop as a batch of 1; ``IndexError`` past the end."""
        if not 0 <= index < NUM_SAMPLES:
            raise IndexError(f"sample {index} of {NUM_SAMPLES}")
        crop_index, photo_index = divmod(index, len(self.photos))
        photo = self.photos[photo_index]
        values = self.normalization(self._crop(photo, crop_index))
        if self.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return Sample(f"{photo.name}-{crop_index:03}", {self.input_name: np.ascontiguousarray(values[np.newaxis])})

    def _crop(self, photo: Photo, crop_index: int) -> NDArray[np.uint8]:
        from PIL.Image import Resampling, Transpose

        if photo.name not in self._decoded:
            self._decoded[photo.name] = _decode(photo)
        image = self._decoded[photo.name]
        box = crop_box(crop_index, image.size, self.size, smallest=self.smallest_crop)
        crop = image.resize(self.size, Resampling.BICUBIC, box=box)
        if crop_index % 2:
            crop = crop.transpose(Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(crop, np.uint8)


def open_dataset(split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> PhotoCrops:
    """Return a split of the photos for a network with one RGB image input; none has a label, ``train`` neither.

    Raises:
        DataError: if the network does not take one RGB image.
        RecipeError: if an option is unknown or has a wrong value.
        MissingDependencyError: if Pillow or a package that carries the photos is not installed.
    """
    name, settings = _only_image(inputs)
    normalization = _normalization(options)
    if find_spec("PIL") is None:
        raise _missing("Pillow")
    for photo in _PHOTOS[split]:
        _locate(photo)
    height, width = settings.shape[2:] if settings.layout == "NCHW" else settings.shape[1:3]
    layout: Literal["NCHW", "NHWC"] = "NCHW" if settings.layout == "NCHW" else "NHWC"
    return PhotoCrops(_PHOTOS[split], SMALLEST_CROP[split], name, (width, height), layout, normalization)


def crop_box(
    index: int, photo_size: tuple[int, int], target_size: tuple[int, int], *, smallest: float
) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of crop ``index`` in pixels; sizes are width, height.

    The crop has the target's aspect ratio and is between ``smallest`` and all of the largest such crop.
    """
    across, down, shrink = (index * step % 1.0 for step in _STEPS)
    fit = min(photo_size[0] / target_size[0], photo_size[1] / target_size[1])
    scale = fit * (1.0 - (1.0 - smallest) * shrink)
    width, height = min(target_size[0] * scale, photo_size[0]), min(target_size[1] * scale, photo_size[1])
    left = (photo_size[0] - width) * ((across + 0.5) % 1.0)
    top = (photo_size[1] - height) * ((down + 0.5) % 1.0)
    return left, top, left + width, top + height


def _decode(photo: Photo) -> Image:
    from PIL.Image import open as open_image

    with open_image(_locate(photo)) as image:
        return image.convert("RGB")


def _locate(photo: Photo) -> Path:
    """Return the photo's file without importing the package that carries it."""
    spec = find_spec(photo.package)
    if spec is None or spec.origin is None:
        raise _missing({"skimage": "scikit-image", "sklearn": "scikit-learn"}[photo.package])
    path = Path(spec.origin).parent / photo.path
    if not path.is_file():
        raise DataError(f"photos: the installed {photo.package!r} has no {photo.path}")
    return path


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(f"photos: {package} is not installed", hint="pip install 'edgeopt[demo]'")


def _only_image(inputs: Mapping[str, InputSettings]) -> tuple[str, InputSettings]:
    if len(inputs) != 1:
        raise DataError(f"photos: a network with one image input is needed, got inputs {sorted(inputs)}")
    ((name, settings),) = inputs.items()
    channel_axis = {"NCHW": 1, "NHWC": 3}.get(settings.layout)
    if channel_axis is None or settings.shape[channel_axis] != 3:
        raise DataError(
            f"photos: {name!r} must be an RGB image, got shape {list(settings.shape)}, layout {settings.layout!r}",
            hint="shape = [1, 3, H, W] with layout = 'NCHW', or [1, H, W, 3] with 'NHWC'",
        )
    return name, settings


def _normalization(options: Mapping[str, object]) -> Normalization:
    for key in options:
        if key not in ("mean", "range", "std"):
            raise RecipeError(f"photos: unknown option {key!r}", hint=did_you_mean(key, ["mean", "range", "std"]))
    value_range = options.get("range", "0-1")
    if value_range not in ("0-1", "0-255"):
        raise RecipeError(f"photos: option 'range' must be '0-1' or '0-255', got {value_range!r}")
    std = _per_channel("std", options.get("std", 1.0))
    if min(std) <= 0:
        raise RecipeError(f"photos: option 'std' must be above 0, got {options['std']!r}")
    mean = _per_channel("mean", options.get("mean", 0.0))
    return Normalization("0-255" if value_range == "0-255" else "0-1", mean, std)


def _per_channel(key: str, value: object) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v)]
    if len(numbers) != len(values) or len(values) not in (1, 3):
        raise RecipeError(f"photos: option {key!r} must be one number or three, got {value!r}")
    return tuple(float(number) for number in numbers)
