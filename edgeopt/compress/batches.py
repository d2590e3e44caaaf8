"""Labelled samples as tensors, and what training does to them: validation split, shuffling, shifting.

A training set is held in memory as one tensor an input: 60,000 grey 28 x 28 images take 188 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from edgeopt.errors import CompressionError, DataError
from edgeopt.samples import Dataset


@dataclass(frozen=True)
class Labelled:
    """Samples stacked along the batch: ``inputs`` one tensor ``(N, ...)`` an input, ``labels`` int64 ``(N,)``."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def take(self, index: torch.Tensor) -> Labelled:
        """Return the samples at ``index``, int64 ``(M,)``."""
        return Labelled(tuple(tensor[index] for tensor in self.inputs), self.labels[index])

    def digest(self) -> str:
        """Return one SHA-256 over shapes, values and labels."""
        digest = hashlib.sha256()
        for tensor in (*self.inputs, self.labels):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()


def load_labelled(dataset: Dataset, role: str) -> Labelled:
    """Stack a whole split.

    Args:
        dataset: samples whose arrays have a batch of 1 first; the order of ``Sample.inputs`` is the network's.
        role: what the split is called in messages, such as ``train``.

    Raises:
        DataError: there are no samples, one has no label, differs in inputs or shape, or is not finite.
    """
    if len(dataset) == 0:
        raise DataError(f"{role}: got no samples, expected at least 1")
    samples = [dataset[index] for index in range(len(dataset))]
    expected = {name: array.shape for name, array in samples[0].inputs.items()}
    labels = []
    for sample in samples:
        shapes = {name: array.shape for name, array in sample.inputs.items()}
        if shapes != expected:
            raise DataError(f"{role}: sample {sample.name!r} has inputs {shapes}, the first has {expected}")
        if not all(np.isfinite(array).all() for array in sample.inputs.values()):
            raise DataError(f"{role}: sample {sample.name!r} has NaN or infinite values")
        if sample.label is None:
            raise DataError(f"{role}: sample {sample.name!r} has no label, and training needs one")
        if (label := sample.class_number) is None:
            raise DataError(f"{role}: sample {sample.name!r} has an array for a label, training needs a class number")
        labels.append(label)
    stacked = (np.concatenate([sample.inputs[name] for sample in samples]) for name in expected)
    return Labelled(tuple(torch.from_numpy(array) for array in stacked), torch.tensor(labels))


def split_validation(data: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled | None]:
    """Split off a random ``share`` of the samples, at least one, to choose the best epoch by; ``None`` for share 0.

    Raises:
        DataError: nothing would be left to train on.
    """
    if share == 0:
        return data, None
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    num_validation = max(1, round(share * len(data)))
    if num_validation >= len(data):
        raise DataError(f"train: {len(data)} samples leave none to train on with validation_share = {share}")
    return data.take(order[num_validation:].sort().values), data.take(order[:num_validation].sort().values)


def shuffled_batches(data: Labelled, batch_size: int, generator: torch.Generator) -> Iterator[Labelled]:
    """Yield every sample once, in a random order, in batches of at most ``batch_size``.

    Batch sizes differ by at most 1, so no batch is left with a single sample, on which batch norm has no variance.
    """
    order = torch.randperm(len(data), generator=generator)
    for index in order.tensor_split(num_batches(len(data), batch_size)):
        yield data.take(index)


def num_batches(num_samples: int, batch_size: int) -> int:
    """Return how many batches :func:`shuffled_batches` makes."""
    return -(-num_samples // batch_size)


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
