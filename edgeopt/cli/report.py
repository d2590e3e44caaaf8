"""How a verdict looks as rows of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from edgeopt.cli.console import percent_text

if TYPE_CHECKING:
    from edgeopt.verdict import OutputParity, ParityReport

VERDICT_COLUMNS = ("verdict", "worst steps", "equal", "worst SQNR", "worst cosine", "top-1")
OUTPUT_COLUMNS = ("output", "worst steps", "on", "equal", "worst SQNR", "on", "worst cosine", "on", "top-1", "accuracy")


def verdict_cells(report: ParityReport | None) -> tuple[str, ...]:
    """Return a verdict and its worst figures over all outputs, in the order of :data:`VERDICT_COLUMNS`."""
    if report is None:
        return ("not verified", *["-"] * (len(VERDICT_COLUMNS) - 1))
    outputs = report.outputs
    built_in = [output.built_in_steps for output in outputs if output.built_in_steps is not None]
    return (
        "passed" if report.passed else "failed",
        f"{worst(max, built_in):g} (built-in)"
        if built_in
        else _steps(worst(max, (output.max_steps for output in outputs)), judged=report.steps_judged),
        percent_text(worst(min, (output.equal_fraction for output in outputs))),
        f"{worst(min, (output.sqnr_db for output in outputs)):.1f} dB",
        f"{worst(min, (output.cosine for output in outputs)):.4f}",
        percent_text(min((o.top1_agreement for o in outputs if o.top1_agreement is not None), default=None)),
    )


def output_cells(output: OutputParity, *, steps_judged: bool) -> tuple[str, ...]:
    """Return the figures of one output, in the order of :data:`OUTPUT_COLUMNS`."""
    accuracy = f"{percent_text(output.float_accuracy)} -> {percent_text(output.accuracy)}"
    return (
        output.name,
        _steps(output.max_steps, judged=steps_judged)
        if output.built_in_steps is None
        else f"{output.built_in_steps:g} (built-in)",
        output.worst_steps_sample,
        percent_text(output.equal_fraction),
        f"{output.sqnr_db:.1f} dB",
        output.worst_sample,
        f"{output.cosine:.4f}",
        output.worst_cosine_sample,
        percent_text(output.top1_agreement),
        "-" if output.accuracy is None else accuracy,
    )


def worst(pick: Callable[[list[float]], float], figures: Iterable[float]) -> float:
    """Return what ``pick`` (``max`` or ``min``) takes, and NaN if there is one: Python's own would step over it."""
    listed = list(figures)
    return math.nan if any(map(math.isnan, listed)) else pick(listed)


def _steps(steps: float, *, judged: bool) -> str:
    return f"{steps:g}" if judged else f"{steps:g} (not judged)"
