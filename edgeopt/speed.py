"""Is a quantized network slower than the float one? Both are timed in turns, and a sign test says how sure it is.

Rounds take turns, every other one in reverse order, so that what else the machine does hits both alike. A round counts
against int8 if its block of inferences took over 5 % longer than the float one. The verdict is no only if the rounds
are so one-sided that chance would do it once in a thousand (the sign test, exact), and never for a network whose
inference takes hardly longer than the call itself.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Action = Callable[[], object]

_MARGIN = 1.05
_CERTAIN = 1e-3
_CALL_MS = 0.2  # an inference that is shorter is mostly Python and the way in and out of the runtime
_BLOCK_S, _BUDGET_S = 0.01, 1.5
_MIN_ROUNDS, _MAX_ROUNDS = 10, 40


@dataclass(frozen=True)
class SpeedReport:
    """The median time of an inference of both, and the verdict: ``ratio`` is int8 / float, the median over rounds.

    ``too_short`` stands for networks that cannot be judged. It was the machine that builds, not a device.
    """

    float_ms: float
    int8_ms: float
    ratio: float
    num_rounds: int
    p_value: float
    verdict: Literal["not slower", "slower", "too short"]

    @property
    def slower(self) -> bool:
        """Return whether int8 certainly lost."""
        return self.verdict == "slower"

    @property
    def summary(self) -> str:
        """Return one line for people."""
        return f"{self.verdict}: float {self.float_ms:.3g} ms, int8 {self.int8_ms:.3g} ms on this machine, one thread"


def compare(floating: Action, integer: Action, budget_s: float = _BUDGET_S) -> SpeedReport:
    """Time two actions in turns and judge the second.

    Args:
        floating: runs one inference of the float network.
        integer: runs one of the quantized network.
        budget_s: about how long to go on; at least ten rounds are timed.
    """
    per_call = max(_seconds(floating, 1), _seconds(integer, 1), _seconds(floating, 1), 1e-7)
    repeats = max(1, math.ceil(_BLOCK_S / per_call))
    rounds: list[tuple[float, float]] = []
    end = time.perf_counter() + budget_s
    while len(rounds) < _MIN_ROUNDS or (len(rounds) < _MAX_ROUNDS and time.perf_counter() < end):
        if len(rounds) % 2 == 0:
            first = _seconds(floating, repeats)
            rounds.append((first, _seconds(integer, repeats)))
        else:
            second = _seconds(integer, repeats)
            rounds.append((_seconds(floating, repeats), second))
    return judge(rounds)


def judge(rounds: list[tuple[float, float]]) -> SpeedReport:
    """Return the report on pairs of seconds, float and int8, one a round."""
    against = sum(integer > _MARGIN * floating for floating, integer in rounds)
    floats, integers = zip(*rounds, strict=True)
    float_ms, int8_ms = 1000 * statistics.median(floats), 1000 * statistics.median(integers)
    p_value = _at_least(against, len(rounds))
    verdict: Literal["not slower", "slower", "too short"] = "slower" if p_value < _CERTAIN else "not slower"
    if int8_ms < _CALL_MS:
        verdict = "too short"
    ratio = statistics.median(integer / floating for floating, integer in rounds)
    return SpeedReport(float_ms, int8_ms, ratio, len(rounds), p_value, verdict)


def _at_least(count: int, total: int) -> float:
    """Return how likely ``count`` or more of ``total`` fair coins show heads."""
    tail: float = sum(math.comb(total, heads) for heads in range(count, total + 1)) / 2**total
    return tail


def _seconds(action: Action, repeats: int) -> float:
    """Return the median time of an action in a block of calls: the first ones find cold caches."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
