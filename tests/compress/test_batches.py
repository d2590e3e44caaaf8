from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import Listed

from edgeopt.compress.batches import (
    Buckets,
    Labelled,
    load_buckets,
    load_labelled,
    num_batches,
    num_samples,
    samples_digest,
    shift_images,
    shuffled_batches,
    split_validation,
)
from edgeopt.errors import CompressionError, DataError
from edgeopt.samples import Sample


def numbered(*counts: int) -> Buckets:
    """Return buckets of samples of lengths 1, 2, ..., whose values are their labels."""
    starts = [sum(counts[:place]) for place in range(len(counts))]
    return tuple(
        bucket(torch.arange(start, start + count), length)
        for length, (start, count) in enumerate(zip(starts, counts, strict=True), start=1)
    )


def bucket(labels: torch.Tensor, length: int) -> Labelled:
    return Labelled((labels.float()[:, None].expand(-1, length),), labels)


def labels_of(data: Buckets) -> list[int]:
    return [label for part in data for label in part.labels.tolist()]


def test_load_labelled_stacks_in_order_when_samples_are_good() -> None:
    data = load_labelled(Listed(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([2, 0, 1])), "train")

    assert data.inputs[0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((0, 2), np.float32), np.zeros(0, int), "got no samples"),
        (np.zeros((2, 2), np.float32), None, "'sample 0' has no label"),
        (np.array([[0, 1], [np.nan, 1]], np.float32), np.zeros(2, int), "'sample 1' has NaN"),
        (np.array([[0, 1], [np.inf, 1]], np.float32), np.zeros(2, int), "'sample 1' has NaN or infinite"),
    ],
)
def test_load_labelled_refuses_when_samples_are_bad(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_labelled(Listed(images, labels), "train")


def test_load_labelled_refuses_when_shapes_differ() -> None:
    with pytest.raises(DataError, match=r"train: samples differ in shape"):
        load_labelled(RAGGED, "train")


class Ragged:
    """Six samples of the lengths 3 and 5 in turn; every other one has no label if ``labels`` is false."""

    def __init__(self, *, labels: bool = True) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        signal = np.full((1, 3 + 2 * (index % 2)), index, np.float32)
        return Sample(f"sample {index}", {"signal": signal}, index if self.labels or index % 2 else None)


RAGGED = Ragged()


def test_load_buckets_stacks_samples_of_one_shape_when_shapes_differ() -> None:
    short, long = load_buckets(RAGGED, "train")

    assert (short.inputs[0].shape, long.inputs[0].shape) == ((3, 3), (3, 5))
    assert labels_of((short, long)) == [0, 2, 4, 1, 3, 5]
    assert short.inputs[0][:, 0].tolist() == [0, 2, 4]


def test_load_buckets_leaves_labels_out_when_one_is_missing_and_none_are_needed() -> None:
    assert [bucket.labels for bucket in load_buckets(Ragged(labels=False), "train", needs_labels=False)] == [None] * 2
    assert load_buckets(RAGGED, "train", needs_labels=False)[0].labels is not None


def test_samples_digest_differs_when_values_labels_or_order_do() -> None:
    data = numbered(3)
    relabelled = (Labelled(data[0].inputs, data[0].labels + 1),)
    unlabelled = (Labelled(data[0].inputs, None),)
    turned = (data[0].take(torch.tensor([2, 1, 0])),)

    assert len({samples_digest(other) for other in (data, relabelled, unlabelled, turned)}) == 4


@pytest.mark.parametrize("counts", [(50,), (30, 20), (48, 1, 1)])
def test_split_validation_parts_are_disjoint_and_complete_when_split(counts: tuple[int, ...]) -> None:
    train, validation = split_validation(numbered(*counts), 0.2, seed=3)

    assert (num_samples(train), num_samples(validation)) == (40, 10)
    assert sorted(labels_of(train) + labels_of(validation)) == list(range(50))


def test_split_validation_is_the_same_when_the_seed_is_the_same() -> None:
    first, second, other = (labels_of(split_validation(numbered(50), 0.2, seed)[1]) for seed in (3, 3, 4))

    assert first == second != other


def test_split_validation_keeps_all_when_the_share_is_zero() -> None:
    train, validation = split_validation(numbered(5), 0.0, seed=0)

    assert num_samples(train) == 5
    assert validation == ()


def test_split_validation_refuses_when_none_are_left_to_train_on() -> None:
    with pytest.raises(DataError, match="leave none to train on"):
        split_validation(numbered(1), 0.5, seed=0)


def test_shuffled_batches_hold_each_sample_once_when_sizes_do_not_divide() -> None:
    batches = list(shuffled_batches(numbered(9), 8, torch.Generator().manual_seed(0)))

    assert [len(batch) for batch in batches] == [5, 4]  # not 8 and a lonely 1
    assert sorted(labels_of(tuple(batches))) == list(range(9))
    assert all(batch.inputs[0][:, 0].tolist() == batch.labels.tolist() for batch in batches)


def test_shuffled_batches_are_of_one_shape_each_in_a_random_order_when_there_are_buckets() -> None:
    data = numbered(40, 40)
    batches = list(shuffled_batches(data, 8, torch.Generator().manual_seed(0)))

    assert sorted(labels_of(tuple(batches))) == list(range(80))
    lengths = [batch.inputs[0].shape[1] for batch in batches]
    assert lengths.count(1) == lengths.count(2) == 5
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))
    assert num_batches(data, 8) == len(batches)


def test_shift_images_moves_each_by_whole_pixels_when_asked() -> None:
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 3, 3] = 1.0
    shifted = shift_images(image.repeat(200, 1, 1, 1), 2, torch.Generator().manual_seed(0))

    places = {tuple(place) for place in shifted[:, 0].nonzero()[:, 1:].tolist()}
    assert shifted.sum(dim=(1, 2, 3)).tolist() == [1.0] * 200
    assert places == {(row, column) for row in range(1, 6) for column in range(1, 6)}  # all 25 shifts occur


def test_shift_images_repeats_the_edge_when_background_is_not_zero() -> None:
    image = torch.full((50, 2, 5, 5), -0.4)

    assert torch.equal(shift_images(image, 2, torch.Generator().manual_seed(0)), image)


def test_shift_images_brings_nothing_in_from_the_other_side_when_an_image_reaches_the_edge() -> None:
    rising = torch.arange(6.0)[:, None] * 10 + torch.arange(6.0)  # grows downwards and to the right
    shifted = shift_images(rising.repeat(50, 1, 1, 1), 2, torch.Generator().manual_seed(0))

    assert (shifted.diff(dim=2) >= 0).all()
    assert (shifted.diff(dim=3) >= 0).all()


def test_shift_images_moves_all_channels_alike_when_there_are_several() -> None:
    images = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(1)).repeat(1, 3, 1, 1)
    shifted = shift_images(images, 2, torch.Generator().manual_seed(0))

    assert torch.equal(shifted[:, 0], shifted[:, 2])


def test_shift_images_refuses_when_the_input_is_no_image() -> None:
    with pytest.raises(CompressionError, match="max_shift = 1 needs images"):
        shift_images(torch.zeros(2, 3), 1, torch.Generator())
