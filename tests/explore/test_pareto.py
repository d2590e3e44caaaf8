"""Fronts by hand: what is on them, what is not, and what equal points do."""

import pytest

from edgeopt.explore.pareto import Objective, dominates, front

BOTH = (Objective("metric", maximize=True), Objective("num_macs"))


def point(metric: float, num_macs: float) -> dict[str, float]:
    return {"metric": metric, "num_macs": num_macs}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (point(0.9, 10), point(0.8, 20), True),
        (point(0.9, 10), point(0.9, 20), True),
        (point(0.9, 10), point(0.9, 10), False),
        (point(0.9, 30), point(0.8, 20), False),
        (point(0.7, 10), point(0.8, 20), False),
    ],
)
def test_dominates_says_whether_one_is_better_in_something_and_worse_in_nothing(
    one: dict[str, float], other: dict[str, float], expected: bool
) -> None:
    assert dominates(one, other, BOTH) is expected


def test_front_is_best_first_when_some_points_are_beaten() -> None:
    points = [point(0.5, 5), point(0.9, 30), point(0.8, 20), point(0.7, 25), point(0.85, 30)]
    assert front(points, BOTH) == [1, 2, 0]


def test_front_keeps_both_when_two_points_are_equal() -> None:
    assert front([point(0.8, 20), point(0.8, 20), point(0.7, 30)], BOTH) == [0, 1]


def test_front_is_the_best_alone_when_there_is_one_objective() -> None:
    assert front([point(0.8, 20), point(0.9, 30)], BOTH[:1]) == [1]
