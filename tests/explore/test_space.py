"""What is varied: read from the command line, multiplied out, drawn from."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import UsageError
from edgeopt.explore.space import Choices, Dimension, Range, draw, grid, parse_dimension, parse_space


@pytest.mark.parametrize(
    ("text", "key", "dimension"),
    [
        ("prune.ratio=0.3,0.5", "prune.ratio", Choices((0.3, 0.5))),
        ("quantize.precision=int8, dynamic", "quantize.precision", Choices(("int8", "dynamic"))),
        ("a=1,2.0,true,none", "a", Choices((1, 2.0, True, "none"))),
        ("a=1,true,1.0", "a", Choices((1, True, 1.0))),
        ("a=[1, 2],[3]", "a", Choices(([1, 2], [3]))),
        ('a="x,y"', "a", Choices(("x,y",))),
        ("a=net.py:build", "a", Choices(("net.py:build",))),
        ("a=3", "a", Choices((3,))),
        ("a=1:8", "a", Range(1, 8)),
        ("a=0.1:8", "a", Range(0.1, 8)),
        ("a=1e-4:1e-1:log", "a", Range(1e-4, 1e-1, is_log=True)),
        ("a=-2:2", "a", Range(-2, 2)),
        ('model."a.b"=1', 'model."a.b"', Choices((1,))),
    ],
)
def test_parse_dimension_reads_choices_and_ranges_when_well_written(text: str, key: str, dimension: Dimension) -> None:
    found = parse_dimension(text)
    assert found == (key, dimension)
    if isinstance(dimension, Choices):
        assert [type(value) for value in found[1].values] == [type(value) for value in dimension.values]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], "expected KEY=a,b,c or KEY=LOW:HIGH, got 'a'"),
        (["a="], "expected KEY="),
        (["=1"], "expected KEY="),
        (["a=x,,y"], "a value is missing beside a comma"),
        (["a=,"], "a value is missing beside a comma"),
        (["a=x,y,x"], "'x' is given twice"),
        (["a=1979-05-27"], "expected finite numbers"),
        (["a=1.0,nan"], "expected finite numbers"),
        (["a=8:1"], "LOW less than HIGH"),
        (["a=1:1"], "LOW less than HIGH"),
        (["a=1:inf"], "LOW less than HIGH"),
        (["a=nan:1"], "LOW less than HIGH"),
        (["a=0:1:log"], "starts above 0"),
        (["a=1", "a=2"], "a is given twice"),
    ],
)
def test_parse_space_says_what_is_wrong_when_it_is(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_space(texts)


def test_grid_is_every_combination_when_there_are_choices() -> None:
    space = parse_space(["a=1,2", "b=x,y"])
    assert grid(space) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert grid({}) == [{}]


def test_grid_refuses_when_a_dimension_is_a_range() -> None:
    with pytest.raises(UsageError, match="--search N --space"):
        grid(parse_space(["a=1:2"]))


def test_draw_is_the_same_when_the_seed_is() -> None:
    space = parse_space(["a=0.0:1.0", "b=1:9", "c=x,y"])
    assert draw(space, 9, seed=3) == draw(space, 9, seed=3)
    assert draw(space, 9, seed=3)[:4] == draw(space, 4, seed=3)
    assert draw(space, 9, seed=3) != draw(space, 9, seed=4)


def test_draw_gives_every_point_once_when_the_space_is_small() -> None:
    assert sorted(point["a"] for point in draw(parse_space(["a=1:3"]), 50, seed=0)) == [1, 2, 3]


def test_draw_is_even_over_powers_when_the_range_is_logarithmic() -> None:
    drawn = draw(parse_space(["a=0.001:1:log"]), 3000, seed=0)
    decades = Counter(int(point["a"] >= 0.01) + int(point["a"] >= 0.1) for point in drawn)
    assert all(900 < decades[decade] < 1100 for decade in range(3))


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9), st.integers(0, 99))
def test_draw_stays_inside_when_rounded_to_few_digits(low: float, width: float, seed: int) -> None:
    if low < low + width:
        (point,) = draw({"a": Range(low, low + width)}, 1, seed)
        assert low <= point["a"] <= low + width
