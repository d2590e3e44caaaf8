"""Finds the fewest moves with which the limit holds, in few trials: twice as many until one holds, then halves between.

The order of the moves is given (:mod:`edgeopt.accuracy.moves`) and comes from calibration samples without labels; only
their number is chosen by the samples that judge. Every plan that these were asked about is a look, and the interval of
the result is widened for the number of looks (:mod:`edgeopt.accuracy.paired`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgeopt.settings import Precision


@dataclass(frozen=True)
class Trial:
    """One plan that was measured: the first ``num_moves`` moves made.

    Attributes:
        nodes: what the plan adds to the recipe's.
        drop: of the metric; ``None`` if the plan could not be built.
        is_accurate: the drop is within the limit, and the verdict of parity is yes.
        is_integer: so much still runs on integers as ``min_integer_coverage`` asks.
        size_bytes: of the model file.
        integer_coverage: the share of multiply-accumulates in integer kernels.
        median_ms: of an inference on the machine that builds; an impression, no verdict.
        failure: why it could not be built, or why the verdict of parity is no.
    """

    num_moves: int
    nodes: dict[str, Precision] = field(repr=False)
    drop: float | None = None
    is_accurate: bool = False
    is_integer: bool = False
    size_bytes: int = 0
    integer_coverage: float = 0.0
    median_ms: float = 0.0
    failure: str | None = None

    @property
    def holds(self) -> bool:
        """Return whether this plan can be shipped."""
        return self.is_accurate and self.is_integer


@dataclass(frozen=True)
class Budget:
    """How much a search may try, and until when; ``clock`` gives seconds."""

    max_trials: int
    seconds: float
    clock: Callable[[], float] = time.monotonic


def search(first: Trial, num_moves: int, try_moves: Callable[[int], Trial], budget: Budget) -> list[Trial]:
    """Return every trial, ``first`` among them, in the order in which they were made.

    Args:
        first: the plan without a move, which does not hold.
        num_moves: how many there are.
        try_moves: measures the plan with the first so many moves made.
        budget: what ends the search early; ``first`` counts.
    """
    trials = [first]
    end = budget.clock() + budget.seconds
    too_few, enough, step = 0, num_moves + 1, 1
    while enough - too_few > 1 and len(trials) < budget.max_trials and budget.clock() < end:
        number = min(too_few + step, num_moves) if enough > num_moves else (too_few + enough) // 2
        trial = try_moves(number)
        trials.append(trial)
        if trial.is_accurate or trial.drop is None or not trial.is_integer:
            enough = number  # more moves only cost more
        else:
            too_few, step = number, 2 * step
    return trials


def best(trials: Sequence[Trial]) -> Trial:
    """Return the plan that holds with the fewest moves; if none does, the one that drops least.

    Plans that keep the integer share come before those that do not.
    """
    holding = [trial for trial in trials if trial.holds]
    if holding:
        return min(holding, key=lambda trial: trial.num_moves)
    built = [trial for trial in trials if trial.drop is not None]
    kept = [trial for trial in built if trial.is_integer] or built
    return min(kept, key=lambda trial: (trial.drop or 0.0, trial.num_moves))


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other one beats in drop, bytes and integer share at once, fewest moves first.

    The plan without a move is always among them, to compare with, and so is the best one.
    """
    built = [trial for trial in trials if trial.drop is not None]
    shown = (trials[0], best(trials)) if built else ()
    kept = [trial for trial in built if trial in shown or not any(_beats(other, trial) for other in built)]
    return sorted(kept, key=lambda trial: trial.num_moves)


def _beats(other: Trial, trial: Trial) -> bool:
    first, second = _cost(other), _cost(trial)
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def _cost(trial: Trial) -> tuple[float, int, float]:
    assert trial.drop is not None
    return trial.drop, trial.size_bytes, -trial.integer_coverage
