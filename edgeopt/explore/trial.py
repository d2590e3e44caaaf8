"""One build of many: a recipe with some values replaced, for one target, and the figures that came of it.

A trial has a folder of its own, ``OUT/trials/NAME``, and shares the cache ``OUT/.cache`` with all others: what trials
have in common, a teacher's training before all, is made by the first one; another that needs it waits for that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from edgeopt import pipeline
from edgeopt.artifacts import canonical_json, digest_of
from edgeopt.errors import AccuracyError, BudgetError, EdgeoptError, LatencyError, ParityError
from edgeopt.explore.figures import Figures, figures_of
from edgeopt.pipeline import BuildResult
from edgeopt.stage import stage

Status = Literal["ok", "refused", "failed"]


@dataclass(frozen=True)
class TrialResult:
    """How one trial ended.

    Attributes:
        target: of the bundle.
        overrides: the recipe's values that were replaced, by dotted key.
        status: ``ok``; ``refused``, a verdict is no; ``failed``, another error stopped it.
        error: what the verdict or the error says; empty for ``ok``.
        seconds: of the whole trial; what another one had left in the cache took none.
        bundle: its folder, relative to the one of all trials; ``None`` if there is none.
        figures: what was measured; those of a refused bundle, too.
    """

    target: str
    overrides: Mapping[str, object]
    status: Status
    error: str
    seconds: float
    bundle: str | None = None
    figures: Figures = field(default_factory=Figures)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> TrialResult:
        """Return the typed form of :meth:`to_json`; figures that only a later version knows are left out."""
        known = {item.name for item in fields(Figures)}
        figures = {name: figure for name, figure in content["figures"].items() if name in known}
        return TrialResult(**{**content, "figures": Figures(**figures)})


def run_trial(
    recipe: str | Path, target: str, overrides: Mapping[str, object], out: Path, *, instructions: bool = False
) -> TrialResult:
    """Build a recipe with some values replaced and return the figures; an error that edgeopt raises is a result too.

    Args:
        recipe: the path of one, or the name of a built-in one.
        target: to build for.
        overrides: recipe values by dotted key.
        out: the folder of all trials.
        instructions: count those of an inference on an emulated Raspberry Pi 4, if the target is ``arm64``.
    """
    start = time.monotonic()
    try:
        built, refusal = _build(recipe, target, overrides, out.absolute())
        with stage("figures"):
            figures = figures_of(built, instructions=instructions)
    except EdgeoptError as error:
        status: Status = "refused" if isinstance(error, BudgetError) else "failed"
        return TrialResult(target, dict(overrides), status, str(error), time.monotonic() - start)
    bundle = built.bundles[0].path.relative_to(out.absolute()).as_posix()
    status, text = ("ok", "") if refusal is None else ("refused", str(refusal))
    return TrialResult(target, dict(overrides), status, text, time.monotonic() - start, bundle, figures)


def trial_folder(out: Path, target: str, overrides: Mapping[str, object]) -> Path:
    """Return a trial's folder, one for the same target and values in whatever order."""
    return out / "trials" / f"{target}-{digest_of([canonical_json(dict(overrides))])[:12]}"


def _build(
    recipe: str | Path, target: str, overrides: Mapping[str, object], out: Path
) -> tuple[BuildResult, EdgeoptError | None]:
    """Return what was built, and the verdict if it is no."""
    place = trial_folder(out, target, overrides)
    try:
        built = pipeline.build(recipe, targets=(target,), out=place, overrides=overrides, cache=out / ".cache")
    except (ParityError, AccuracyError, LatencyError) as refused:
        return cast("BuildResult", refused.result), refused
    return built, None
