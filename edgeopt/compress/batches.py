"""Samples as tensors, and what training does to them: buckets of one shape, validation split, shuffling, shifting.

A training set is held in memory as one tensor an input and shape: 60,000 grey 28 x 28 images take 188 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from edgeopt.errors import CompressionError, DataError
from edgeopt.samples import Dataset, Sample


@dataclass(frozen=True)
class Labelled:
    """Samples stacked along the batch: ``inputs`` one tensor ``(N, ...)`` an input, ``labels`` int64 ``(N,)``.

    ``labels`` is ``None`` for samples that have none.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs[0])

    def take(self, index: torch.Tensor) -> Labelled:
        """Return the samples at ``index``, int64 ``(M,)``."""
        labels = None if self.labels is None else self.labels[index]
        return Labelled(tuple(tensor[index] for tensor in self.inputs), labels)

    def split(self, count: int) -> list[Labelled]:
        """Return the samples in ``count`` parts whose sizes differ by at most 1."""
        return [self.take(index) for index in torch.arange(len(self)).tensor_split(count)] if count > 1 else [self]


# Samples of one shape are one bucket; a network that takes any length is trained on several.
Buckets = tuple[Labelled, ...]


def load_labelled(dataset: Dataset, role: str) -> Labelled:
    """Stack a whole split of labelled samples that have all one shape; see :func:`load_buckets`.

    Raises:
        DataError: there are no samples, one has no label, differs in inputs or shape, or is not finite.
    """
    buckets = load_buckets(dataset, role)
    if len(buckets) > 1:
        shapes = [tuple(tensor.shape[1:] for tensor in bucket.inputs) for bucket in buckets[:2]]
        raise DataError(f"{role}: samples differ in shape, {shapes[0]} and {shapes[1]}: expected one")
    return buckets[0]


def load_buckets(dataset: Dataset, role: str, *, needs_labels: bool = True) -> Buckets:
    """Stack a whole split, the samples of one shape together, in the order of the first of each shape.

    Args:
        dataset: samples whose arrays have a batch of 1 first; the order of ``Sample.inputs`` is the network's.
        role: what the split is called in messages, such as ``train``.
        needs_labels: refuse a sample without a label; else the labels of all are left out if one has none.

    Raises:
        DataError: there are no samples, one has no label, differs in its inputs' names, or is not finite.
    """
    if len(dataset) == 0:
        raise DataError(f"{role}: got no samples, expected at least 1")
    samples = [dataset[index] for index in range(len(dataset))]
    names = list(samples[0].inputs)
    by_shape: dict[tuple[tuple[int, ...], ...], list[Sample]] = {}
    for sample in samples:
        if list(sample.inputs) != names:
            raise DataError(f"{role}: sample {sample.name!r} has inputs {list(sample.inputs)}, the first has {names}")
        if not all(np.isfinite(array).all() for array in sample.inputs.values()):
            raise DataError(f"{role}: sample {sample.name!r} has NaN or infinite values")
        by_shape.setdefault(tuple(array.shape for array in sample.inputs.values()), []).append(sample)
    is_labelled = needs_labels or all(sample.class_number is not None for sample in samples)
    return tuple(_stack(bucket, names, role, is_labelled=is_labelled) for bucket in by_shape.values())


def _stack(samples: list[Sample], names: list[str], role: str, *, is_labelled: bool) -> Labelled:
    labels = torch.tensor([_class_of(sample, role) for sample in samples]) if is_labelled else None
    stacked = (np.concatenate([sample.inputs[name] for sample in samples]) for name in names)
    return Labelled(tuple(torch.from_numpy(array) for array in stacked), labels)


def _class_of(sample: Sample, role: str) -> int:
    if sample.label is None:
        raise DataError(
            f"{role}: sample {sample.name!r} has no label, and training needs one",
            hint='a step with method = "distill" and alpha = 1 learns from a teacher alone',
        )
    if (number := sample.class_number) is None:
        raise DataError(f"{role}: sample {sample.name!r} has an array for a label, training needs a class number")
    return number


def num_samples(data: Buckets) -> int:
    """Return how many samples there are in all buckets."""
    return sum(len(bucket) for bucket in data)


def samples_digest(data: Buckets) -> str:
    """Return one SHA-256 over shapes, values and labels."""
    digest = hashlib.sha256()
    for bucket in data:
        for tensor in (*bucket.inputs, *([] if bucket.labels is None else [bucket.labels])):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def split_validation(data: Buckets, share: float, seed: int) -> tuple[Buckets, Buckets]:
    """Split off a random ``share`` of the samples, at least one, to choose the best epoch by; none for share 0.

    Raises:
        DataError: nothing would be left to train on.
    """
    if share == 0:
        return data, ()
    total = num_samples(data)
    num_validation = max(1, round(share * total))
    if num_validation >= total:
        raise DataError(f"train: {total} samples leave none to train on with validation_share = {share}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[order[:num_validation]] = True
    parts = list(zip(data, torch.split(chosen, [len(bucket) for bucket in data]), strict=True))
    train = tuple(bucket.take((~mask).nonzero()[:, 0]) for bucket, mask in parts if not mask.all())
    return train, tuple(bucket.take(mask.nonzero()[:, 0]) for bucket, mask in parts if mask.any())


def shuffled_batches(data: Buckets, batch_size: int, generator: torch.Generator) -> Iterator[Labelled]:
    """Yield every sample once, in a random order, in batches of one shape of at most ``batch_size``.

    Batch sizes of a bucket differ by at most 1, so no batch is left with a single sample, on which batch norm has no
    variance. Batches of several buckets come in a random order.
    """
    batches = [
        (bucket, index)
        for bucket in data
        for index in torch.randperm(len(bucket), generator=generator).tensor_split(-(-len(bucket) // batch_size))
    ]
    order = torch.randperm(len(batches), generator=generator).tolist() if len(data) > 1 else range(len(batches))
    for number in order:
        bucket, index = batches[number]
        yield bucket.take(index)


def num_batches(data: Buckets, batch_size: int) -> int:
    """Return how many batches :func:`shuffled_batches` makes."""
    return sum(-(-len(bucket) // batch_size) for bucket in data)


def shift_images(images: torch.Tensor, max_shift: int, generator: torch.Generator) -> torch.Tensor:
    """Shift each image by its own random whole number of pixels, up to ``max_shift`` up, down, left and right.

    What enters at an edge repeats the pixels of that edge: the background stays the background under any
    preprocessing, where zero would be grey after a mean was subtracted.

    Args:
        images: ``(N, C, H, W)``.
        max_shift: pixels; 0 returns the images as they are.
        generator: where the shifts come from.

    Raises:
        CompressionError: the tensor has not four dimensions.
    """
    if max_shift == 0:
        return images
    if images.dim() != 4:
        raise CompressionError(
            f"max_shift = {max_shift} needs images (N, C, H, W), got an input of shape {tuple(images.shape)}",
            hint="set max_shift = 0",
        )
    num_images, num_channels, height, width = images.shape
    shifts = torch.randint(-max_shift, max_shift + 1, (2, num_images, 1), generator=generator)
    rows = (torch.arange(height) - shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width) - shifts[1]).clamp(0, width - 1)
    image = torch.arange(num_images)[:, None, None, None]
    channel = torch.arange(num_channels)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def flip_images(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror every other image, at random, left to right.

    Args:
        images: ``(N, C, H, W)``.
        generator: where the choice comes from.

    Raises:
        CompressionError: the tensor has not four dimensions.
    """
    if images.dim() != 4:
        raise CompressionError(
            f"flip needs images (N, C, H, W), got an input of shape {tuple(images.shape)}", hint="set flip = false"
        )
    is_flipped = torch.randint(2, (len(images), 1, 1, 1), generator=generator, dtype=torch.bool)
    return torch.where(is_flipped, images.flip(3), images)
