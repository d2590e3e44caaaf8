"""Figures, the goals they are judged by, and the table and JSON that show them.

A figure is a ratio, a count, or what one run took. One that could not be measured says why in its place.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GOALS = Path(__file__).with_name("bench_goals.toml")

_GOAL = re.compile(r"(?P<comparison><=|>=) (?P<value>\d+(\.\d+)?) (?P<unit>\S+)")
_COLUMNS = ("section", "network", "figure", "value", "limit", "verdict", "remark")
_DIGITS = {"steps": 0, "bytes": 0, "operators": 0, "cases": 0, "lines": 0, "%": 2}

Goals = Mapping[tuple[str, str, str], "Goal"]


@dataclass(frozen=True)
class Goal:
    """A limit with its unit, ``<= 30 s``."""

    comparison: str
    value: float
    unit: str

    def __str__(self) -> str:
        """Return it as it is written in the file of goals."""
        return f"{self.comparison} {self.value:g} {self.unit}"

    def is_met_by(self, value: float) -> bool:
        """Return whether a value keeps the limit; NaN never does."""
        return value <= self.value if self.comparison == "<=" else value >= self.value


@dataclass(frozen=True)
class Figure:
    """One line of the table; ``value`` is ``None`` if it was not measured, and then ``remark`` is the reason."""

    section: str
    network: str
    name: str
    value: float | None
    unit: str
    remark: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what its goal is found by."""
        return self.section, self.network, self.name

    @property
    def shown(self) -> str:
        """Return value and unit for a reader."""
        return "-" if self.value is None else f"{self.value:.{_DIGITS.get(self.unit, 3)}f} {self.unit}"


def parse_goal(text: str) -> Goal:
    """Read ``"<= 30 s"``.

    Raises:
        ValueError: if it is of another form.
    """
    match = _GOAL.fullmatch(text)
    if match is None:
        raise ValueError(f"a goal is '<= 30 s' or '>= 98 %', got {text!r}")
    return Goal(match["comparison"], float(match["value"]), match["unit"])


def read_goals(path: Path = GOALS) -> Goals:
    """Read the file of goals, by section, network and name."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        (section, network, name): parse_goal(text)
        for section, networks in content.items()
        for network, figures in networks.items()
        for name, text in figures.items()
    }


def verdict(figure: Figure, goal: Goal | None) -> str:
    """Return ``met``, ``missed``, ``not measured``, or nothing for a figure without a goal.

    Raises:
        ValueError: if the goal has another unit than the figure.
    """
    if figure.value is None:
        return "not measured"
    if goal is None:
        return ""
    if goal.unit != figure.unit:
        raise ValueError(f"{figure.name!r} is in {figure.unit}, its goal in {goal.unit}")
    return "met" if goal.is_met_by(figure.value) else "missed"


def table(figures: Sequence[Figure], goals: Goals) -> str:
    """Return the figures as lines of text, columns aligned."""
    rows = [_COLUMNS, *(_row(figure, goals.get(figure.key)) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(_line(row, widths) for row in rows) + "\n"


def as_json(figures: Iterable[Figure], goals: Goals, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures, limits and verdicts as JSON types, with facts about the run."""
    return {
        "run": dict(facts),
        "figures": [
            {**asdict(figure), "value": _finite(figure.value), "limit": _limit(goals.get(figure.key)),
             "verdict": verdict(figure, goals.get(figure.key))}
            for figure in figures
        ],
    }  # fmt: skip


def _row(figure: Figure, goal: Goal | None) -> tuple[str, ...]:
    return (
        figure.section,
        figure.network,
        figure.name,
        figure.shown,
        _limit(goal),
        verdict(figure, goal),
        figure.remark,
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _limit(goal: Goal | None) -> str:
    return "" if goal is None else str(goal)


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
