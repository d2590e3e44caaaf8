from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.compress.codebook import k_means, share_values


def test_k_means_finds_the_two_groups_when_worked_by_hand() -> None:
    # Linear from 0 to 10: clusters {0, 1, 3} and {8, 10}; their means 4/3 and 9 change no cluster.
    values = torch.tensor([0.0, 1.0, 3.0, 8.0, 10.0], dtype=torch.float64)
    centroids, clusters = k_means(values, 2, "linear", 100)

    assert centroids.tolist() == pytest.approx([4 / 3, 9.0])
    assert clusters.tolist() == [0, 0, 0, 1, 1]


def test_k_means_gives_an_empty_cluster_the_farthest_value_when_nothing_is_near() -> None:
    # Linear: 20, 25, 30, and nothing is nearest to 25. The means are 20 2/3 and 29.5; 22 is the farthest from its own.
    values = torch.tensor([20.0, 20.0, 22.0, 29.0, 30.0], dtype=torch.float64)
    centroids, clusters = k_means(values, 3, "linear", 100)

    assert centroids.tolist() == [20.0, 22.0, 29.5]
    assert clusters.tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("initialization", "expected"), [("linear", [0.0, 50.0, 100.0]), ("density", [0.0, 2.0, 100.0])]
)
def test_k_means_begins_where_it_is_told_when_it_does_not_move(initialization: str, expected: list[float]) -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0], dtype=torch.float64)
    assert k_means(values, 3, initialization, 0)[0].tolist() == expected  # type: ignore[arg-type]


def test_share_values_keeps_zeros_when_the_weight_has_some() -> None:
    weight = torch.tensor([[0.0, 0.1, 0.12], [-1.0, 0.0, 1.1]])
    shared = share_values(weight, 4, "linear", 100)

    # Zero is one of the four; the other three begin at -1, 0.05 and 1.1.
    assert torch.allclose(shared, torch.tensor([[0.0, 0.11, 0.11], [-1.0, 0.0, 1.1]]))


def test_share_values_changes_nothing_when_there_are_few_values() -> None:
    weight = torch.tensor([1.0, -1.0, 0.0, 1.0])
    assert torch.equal(share_values(weight, 3, "linear", 100), weight)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60), st.integers(2, 9))
def test_share_values_has_at_most_so_many_values_whatever_the_weights_are(values: list[float], count: int) -> None:
    weight = torch.tensor(values)
    shared = share_values(weight, count, "linear", 100)

    assert len(torch.unique(shared)) <= count
    assert torch.equal(shared == 0, weight == 0) or not bool((weight == 0).any())
    assert bool(((shared == 0) | (weight != 0)).all())
