"""What an exploration varies: recipe values by dotted key, each with the values it may take.

On the command line a dimension is ``KEY=a,b,c``, choices that are TOML values or bare words, or ``KEY=LOW:HIGH``, a
range with both ends: of integers if both are, else of floats; ``KEY=LOW:HIGH:log`` is even on a logarithmic scale.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from random import Random

from edgeopt.errors import UsageError
from edgeopt.recipe import parse_override

_DIGITS = 4
"""Significant digits of a drawn float: more would make no difference, and tables hard to read."""

_DRAWS = 100
"""How many draws may be made for each point that is asked for, so that a small space ends with all it has."""


@dataclass(frozen=True)
class Choices:
    """A dimension that takes one of several values."""

    values: tuple[object, ...]

    def draw(self, random: Random) -> object:
        """Return one of the values, each as likely as another."""
        return random.choice(self.values)


@dataclass(frozen=True)
class Range:
    """A dimension that takes any number from ``low`` to ``high``, both of which are included."""

    low: int | float
    high: int | float
    is_log: bool = False

    @property
    def is_int(self) -> bool:
        """Return whether it takes integers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, random: Random) -> int | float:
        """Return a number, all as likely as each other, or all powers for ``is_log``; a float has four digits."""
        if self.is_int and not self.is_log:
            return random.randint(int(self.low), int(self.high))
        if self.is_log:
            drawn = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = random.uniform(self.low, self.high)
        return self.fitted(drawn)

    def fitted(self, number: float) -> int | float:
        """Return the number of this range that is nearest to one; a float has four digits."""
        near = round(number) if self.is_int else float(f"{number:.{_DIGITS}g}")
        return min(max(near, self.low), self.high)


Dimension = Choices | Range
Space = Mapping[str, Dimension]


def parse_space(texts: Iterable[str]) -> dict[str, Dimension]:
    """Return a space from ``KEY=a,b,c`` and ``KEY=LOW:HIGH[:log]``.

    Raises:
        UsageError: a text is neither, has no value, has one twice, an empty range, or a key comes again.
    """
    space: dict[str, Dimension] = {}
    for text in texts:
        key, dimension = parse_dimension(text)
        if key in space:
            raise UsageError(f"{key} is given twice", hint=f"give all its values at once: {key}=a,b,c")
        space[key] = dimension
    return space


def parse_dimension(text: str) -> tuple[str, Dimension]:
    """Return the key and the dimension that a text such as ``compress.prune.pruning_ratio=0.3,0.5`` describes.

    Raises:
        UsageError: see :func:`parse_space`.
    """
    key, _, written = (part.strip() for part in text.partition("="))
    if not key or not written:
        raise UsageError(f"expected KEY=a,b,c or KEY=LOW:HIGH, got {text!r}")
    return key, _parse_range(key, written) or _parse_choices(key, written)


def grid(space: Space) -> list[dict[str, object]]:
    """Return every combination of the choices, the last dimension changing fastest; ``[{}]`` for an empty space.

    Raises:
        UsageError: a dimension is a range.
    """
    choices = []
    for key, dimension in space.items():
        if isinstance(dimension, Range):
            ends = f"{dimension.low}:{dimension.high}"
            raise UsageError(f"{key}={ends}: a grid has single values", hint="--search N --space draws from a range")
        choices.append(dimension.values)
    return [dict(zip(space, values, strict=True)) for values in product(*choices)]


def draw(space: Space, count: int, seed: int) -> list[dict[str, object]]:
    """Return random points, no two the same; fewer if the space has fewer. More of them begin with the same ones."""
    random = Random(seed)  # noqa: S311, as nothing is to be kept secret
    points: dict[str, dict[str, object]] = {}
    for _ in range(_DRAWS * count):
        point = {key: dimension.draw(random) for key, dimension in space.items()}
        points.setdefault(repr(point), point)  # not ==, by which True is 1
        if len(points) == count:
            break
    return list(points.values())


def _parse_range(key: str, written: str) -> Range | None:
    """Return the range that a text describes, or ``None`` if it is none."""
    text, is_log = written.removesuffix(":log"), written.endswith(":log")
    low, colon, high = text.partition(":")
    first, last = _number(low), _number(high)
    if not colon or first is None or last is None:
        return None
    found = Range(first, last, is_log)
    if not (-math.inf < found.low < found.high < math.inf):
        raise UsageError(f"{key}={written}: expected LOW:HIGH with LOW less than HIGH, both finite")
    if is_log and found.low <= 0:
        raise UsageError(f"{key}={written}: a logarithmic range starts above 0")
    return found


def _number(text: str) -> int | float | None:
    value = parse_override(f"number={text}")[1]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _parse_choices(key: str, written: str) -> Choices:
    """Return the values between the commas; those inside a TOML string or array divide nothing."""
    try:
        values = tomllib.loads(f"values = [{written}]")["values"]
    except tomllib.TOMLDecodeError:
        parts = [part.strip() for part in written.split(",")]
        if not all(parts):
            raise UsageError(f"{key}={written}: a value is missing beside a comma") from None
        values = [parse_override(f"{key}={part}")[1] for part in parts]
    _check_plain(key, written, values)
    for index, value in enumerate(values):
        if any(repr(value) == repr(other) for other in values[:index]):
            raise UsageError(f"{key}={written}: {value!r} is given twice")
    return Choices(tuple(values))


def _check_plain(key: str, written: str, values: list[object]) -> None:
    """Refuse what a table of results cannot hold: dates, NaN and infinity."""
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError):
        text = f"{key}={written}: expected finite numbers, text, true or false, or arrays and tables of these"
        raise UsageError(text) from None
