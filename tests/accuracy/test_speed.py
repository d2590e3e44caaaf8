"""The verdict of int8 against float, on given times and on real clocks."""

import time

import pytest

from edgeopt.speed import compare, judge


def test_judge_says_slower_when_every_round_is() -> None:
    report = judge([(0.010, 0.012)] * 12)
    assert report.slower
    assert report.ratio == pytest.approx(1.2)
    assert report.p_value == pytest.approx(2**-12)
    assert "slower: float 10 ms, int8 12 ms" in report.summary


@pytest.mark.parametrize("int8", [0.0085, 0.010, 0.0104])
def test_judge_says_not_slower_when_the_difference_is_within_the_margin(int8: float) -> None:
    assert judge([(0.010, int8)] * 12).verdict == "not slower"


def test_judge_is_not_certain_when_two_of_twelve_rounds_say_otherwise() -> None:
    assert not judge([(0.010, 0.012)] * 10 + [(0.010, 0.009)] * 2).slower


def test_judge_says_too_short_when_a_call_takes_as_long_as_the_network() -> None:
    assert judge([(0.00002, 0.00010)] * 20).verdict == "too short"


def test_compare_finds_the_slower_one_when_both_are_timed_in_turns() -> None:
    slow = compare(lambda: time.sleep(0.001), lambda: time.sleep(0.03), budget_s=0.2)
    assert slow.slower
    assert slow.num_rounds >= 10
    assert not compare(lambda: time.sleep(0.03), lambda: time.sleep(0.001), budget_s=0.2).slower
