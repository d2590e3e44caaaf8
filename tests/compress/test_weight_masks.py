from __future__ import annotations

import pytest
import torch

from edgeopt.compress.masks import cubic, global_masks, local_masks, smallest_removed, two_of_four
from edgeopt.errors import CompressionError


def test_smallest_removed_takes_the_smallest_scores_when_they_differ() -> None:
    scores = torch.tensor([[0.3, -torch.inf, 0.1], [0.5, 0.2, 0.4]])

    assert smallest_removed(scores, 3).tolist() == [[True, False, False], [True, False, True]]


def test_smallest_removed_takes_the_first_when_scores_are_equal() -> None:
    assert smallest_removed(torch.ones(5), 2).tolist() == [False, False, True, True, True]


def test_smallest_removed_keeps_all_when_no_zeros_are_asked() -> None:
    assert bool(smallest_removed(torch.zeros(4), 0).all())


def test_local_masks_give_each_weight_its_share_and_global_masks_one_share_to_all() -> None:
    scores = {"a": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "b": torch.tensor([[5.0, 6.0, 7.0, 0.5]])}
    local = local_masks(scores, {"a": 0.5, "b": 0.25})
    together = global_masks(scores, 0.5)

    assert [mask.tolist() for mask in local.values()] == [[[False, False, True, True]], [[True, True, True, False]]]
    assert [mask.tolist() for mask in together.values()] == [[[False, False, False, True]], [[True, True, True, False]]]


def test_global_masks_refuse_when_a_weight_would_lose_everything() -> None:
    scores = {"small": torch.full((2, 2), 0.1), "large": torch.ones(2, 2)}
    with pytest.raises(CompressionError, match="weight 'small' would lose all its values"):
        global_masks(scores, 0.5)


def test_two_of_four_keeps_the_larger_two_along_the_input_channels_when_the_kernel_is_spatial() -> None:
    # Two outputs, eight inputs, one pixel, and a second pixel with the opposite order.
    ascending = torch.tensor([1.0, 2, 3, 4, 8, 7, 6, 5])
    scores = torch.stack([torch.stack([ascending, -ascending], dim=1)] * 2)
    mask = two_of_four(scores)

    assert mask.shape == (2, 8, 2)
    assert mask[1, :, 0].tolist() == [False, False, True, True, True, True, False, False]
    assert mask[1, :, 1].tolist() == [True, True, False, False, False, False, True, True]


def test_cubic_is_what_the_paper_says_when_worked_by_hand() -> None:
    # 0.9 + (0 - 0.9) (1 - t)^3: seven eighths of the way at half the time.
    assert [cubic(0.0, 0.9, share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.7875, 0.9])
