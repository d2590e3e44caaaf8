"""ONNX's own node cases through LiteRT: every one passes or is refused, and the list of refusals may only shrink."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest
from onnx_node_cases import Outcome, judge_apart

REFUSED_LIST = Path(__file__).with_name("refused.toml")
FEWEST_IN_SCOPE = 900  # a newer ONNX may drop cases, but not most of them unseen


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return judge_apart()


@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    return {name: reason for reason, names in tomllib.loads(REFUSED_LIST.read_text()).items() for name in names}


def names_of(outcomes: list[Outcome], verdict: str) -> set[str]:
    return {outcome.name for outcome in outcomes if outcome.verdict == verdict}


def test_node_cases_are_right_or_refused_when_lowered(outcomes, capsys):
    counts = Counter(outcome.verdict for outcome in outcomes)
    with capsys.disabled():
        print(f"\nONNX node cases: {len(outcomes)} in scope, {dict(counts)}")
    broken = [outcome for outcome in outcomes if outcome.verdict not in ("passed", "refused")]
    assert broken == []
    assert len(outcomes) >= FEWEST_IN_SCOPE


def test_node_cases_are_refused_only_when_listed(outcomes, listed):
    reasons = {outcome.name: outcome.reason for outcome in outcomes}
    assert {name: reasons[name] for name in names_of(outcomes, "refused") - set(listed)} == {}


def test_list_of_refusals_shrinks_when_a_case_passes(outcomes, listed):
    assert set(listed) & names_of(outcomes, "passed") == set(), "these pass now: strike them out of refused.toml"
    assert set(listed) <= {outcome.name for outcome in outcomes}, "these are no cases any more"
