"""The search over the number of moves, the order of moves, and the frontier, on made figures."""

from collections.abc import Callable

import pytest

from edgeopt.accuracy.groups import QuantizerGroup
from edgeopt.accuracy.moves import plan_after, ranked_moves
from edgeopt.accuracy.search import Budget, Trial, best, frontier, search
from edgeopt.accuracy.sensitivity import Damage
from edgeopt.settings import QuantizeSettings

AMPLE = Budget(100, 1e9)


def trial(number: int, drop: float, *, limit: float = 0.01, coverage: float = 1.0, size: int = 100) -> Trial:
    return Trial(number, {}, drop, drop <= limit, coverage >= 0.5, size, coverage)


def needing(needed: int) -> Callable[[int], Trial]:
    return lambda number: trial(number, 0.0 if number >= needed else 0.1, coverage=1 - number / 1000)


@pytest.mark.parametrize("needed", range(1, 21))
def test_search_finds_the_fewest_moves_when_more_never_hurt(needed: int) -> None:
    trials = search(trial(0, 0.1), 20, needing(needed), AMPLE)
    assert best(trials).num_moves == needed
    assert len(trials) <= 11
    assert len({found.num_moves for found in trials}) == len(trials)


def test_search_ends_and_keeps_the_best_when_the_trials_are_used_up() -> None:
    trials = search(trial(0, 0.1), 20, lambda number: trial(number, 0.1 - number / 1000), Budget(4, 1e9))
    assert [found.num_moves for found in trials] == [0, 1, 3, 7]
    assert best(trials).num_moves == 7
    assert not best(trials).holds


def test_search_ends_when_the_time_is_over() -> None:
    now = iter([0.0, 1.0, 59.0, 61.0])
    trials = search(trial(0, 0.1), 20, needing(20), Budget(100, 60.0, lambda: next(now)))
    assert [found.num_moves for found in trials] == [0, 1, 3]


def test_search_stops_taking_more_when_too_little_is_left_on_integers() -> None:
    trials = search(trial(0, 0.1), 20, lambda number: trial(number, 0.1, coverage=1 - number / 10), AMPLE)
    assert max(found.num_moves for found in trials) <= 7
    assert best(trials).is_integer


def test_search_goes_back_when_a_plan_cannot_be_built() -> None:
    def try_moves(number: int) -> Trial:
        return Trial(number, {}, failure="no kernel") if number > 4 else needing(4)(number)

    assert best(search(trial(0, 0.1), 20, try_moves, AMPLE)).num_moves == 4


def test_search_tries_nothing_when_there_is_no_move() -> None:
    assert search(trial(0, 0.1), 0, needing(1), AMPLE) == [trial(0, 0.1)]


def test_frontier_leaves_out_what_another_plan_beats() -> None:
    found = [trial(0, 0.1), trial(3, 0.05, size=120), trial(1, 0.05, size=110), Trial(9, {}, failure="no")]
    assert [point.num_moves for point in frontier(found)] == [0, 1]


# ---------------------------------------------------------------- moves


def group(name: str, work: int = 100, weighted: bool = True) -> QuantizerGroup:
    nodes = (f"{name}_conv", f"{name}_add")
    return QuantizerGroup(name, (name,), nodes[:1], nodes, nodes[:1] if weighted else (), work)


def names(groups: list[QuantizerGroup], damages: list[Damage], *precisions: str) -> list[tuple[str, str]]:
    return [(move.group, move.precision) for move in ranked_moves(groups, damages, precisions)]  # type: ignore[arg-type]


def test_ranked_moves_put_damage_per_work_first() -> None:
    found = names([group("big", 1000), group("small", 10)], [Damage(0.5, 0.5), Damage(0.4, 0.4)], "float")
    assert found == [("small", "float"), ("big", "float")]


def test_ranked_moves_try_float_for_one_bad_group_before_they_touch_another() -> None:
    found = names(
        [group("a"), group("bad"), group("c")], [Damage(0.01, 0), Damage(9, 0), Damage(0.02, 0)], "int16", "float"
    )
    assert found[:2] == [("bad", "int16"), ("bad", "float")]


def test_ranked_moves_widen_all_before_one_is_float_when_the_damage_is_spread() -> None:
    found = names([group(name) for name in "abc"], [Damage(1, 0)] * 3, "int16", "float")
    assert [precision for _, precision in found] == ["int16"] * 3 + ["float"] * 3


def test_ranked_moves_go_straight_to_float_when_constants_do_the_damage() -> None:
    assert names([group("a")], [Damage(1.0, 0.9)], "dynamic", "int16", "float") == [("a", "float")]


def test_ranked_moves_take_dynamic_only_where_something_is_multiplied() -> None:
    groups = [group("a"), group("b", weighted=False)]
    found = names(groups, [Damage(1, 0), Damage(1, 0)], "dynamic", "int16", "float")
    assert found[:2] == [("a", "dynamic"), ("b", "int16")]


def test_ranked_moves_leave_out_what_does_no_damage() -> None:
    assert names([group("a")], [Damage(0.0, 0.0)], "float") == []


def test_plan_after_keeps_the_recipes_nodes_and_leaves_float_where_it_is() -> None:
    moves = ranked_moves([group("a")], [Damage(1, 0)], ("dynamic", "float"))
    plan = plan_after(QuantizeSettings(nodes={"mine": "float"}), moves[:1])
    assert plan.nodes == {"mine": "float", "a_conv": "dynamic", "a_add": "float"}
    assert set(plan_after(plan, moves).nodes.values()) == {"float"}
