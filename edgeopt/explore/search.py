"""Architecture search: which values of a recipe give the best networks within a budget.

    draw -> load -> foresee: over the budget? -> build, verify, measure -> tell the sampler -> front

What costs too much by its structure is never trained. The first candidates are the largest that are foreseen at several
costs; the sampler draws the rest. ``search.json`` in the output folder is written anew after each trial, and a search
that was stopped goes on from there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.artifacts import canonical_json, digest_of
from edgeopt.atomic import locked, write_text
from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.explore.cost_table import TableError, table_error
from edgeopt.explore.foresight import Foresight
from edgeopt.explore.pareto import front
from edgeopt.explore.plan import SearchPlan, refuse_nonsense
from edgeopt.explore.sampling import JOURNAL, Point, Sampling
from edgeopt.explore.trial import TrialResult, run_trial
from edgeopt.explore.workers import workers
from edgeopt.provenance import fingerprint, model_files
from edgeopt.stage import inner_stages, logger, stage

if TYPE_CHECKING:
    import optuna

RESULT = "search.json"
TABLE = "cost_table.json"
_SCHEMA_VERSION = 1
_MAX_SEEDS = 5
_MAX_IDLE = 100
"""So many candidates in a row that are known or over the budget end a search: the space has no others."""


@dataclass(frozen=True)
class SearchTrial:
    """One candidate that was built: its point in the space, what was foreseen of it, and what came of it."""

    number: int
    point: Mapping[str, object]
    foreseen: Mapping[str, float]
    result: TrialResult

    @property
    def figures(self) -> dict[str, float]:
        """The figures that were measured."""
        return {name: figure for name, figure in vars(self.result.figures).items() if isinstance(figure, int | float)}

    def is_measured(self, plan: SearchPlan) -> bool:
        """Return whether there is every figure that the plan looks at."""
        return all(name in self.figures for name in plan.figures)

    def excess(self, plan: SearchPlan) -> dict[str, float]:
        """Return by how much, relatively, each limit is exceeded; ``verdict`` is 1 for a bundle that was refused."""
        over = {name: self.figures[name] / most - 1 for name, most in plan.budget.items() if name in self.figures}
        return {**over, "verdict": 0.0 if self.result.status == "ok" else 1.0}

    def is_within(self, plan: SearchPlan) -> bool:
        """Return whether it can be shipped: within the budget, and the verdict is yes."""
        return self.is_measured(plan) and max(self.excess(plan).values()) <= 0

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return {**vars(self), "result": self.result.to_json()}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> SearchTrial:
        """Return the typed form of :meth:`to_json`."""
        return SearchTrial(**{**content, "result": TrialResult.from_json(content["result"])})


@dataclass
class SearchResult:
    """What a search found so far.

    Attributes:
        plan: what was looked for.
        trials: the candidates that were built, in the order in which they were drawn.
        seeds: the points that were tried first.
        over_budget: points that were not built, with what was foreseen.
    """

    plan: SearchPlan
    trials: list[SearchTrial] = field(default_factory=list)
    seeds: list[Point] = field(default_factory=list)
    over_budget: list[dict[str, Any]] = field(default_factory=list)

    @property
    def front(self) -> list[SearchTrial]:
        """The trials within the budget that no other one beats in all objectives, best in the first one first."""
        within = [trial for trial in self.trials if trial.is_within(self.plan)]
        return [within[index] for index in front([trial.figures for trial in within], self.plan.objectives)]

    @property
    def table_error(self) -> TableError | None:
        """How well the table of costs foresaw what was measured."""
        name = self.plan.table_figure
        built = [trial for trial in self.trials if name in trial.figures and name in trial.foreseen]
        return table_error([(trial.foreseen[str(name)], trial.figures[str(name)]) for trial in built])

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        error = self.table_error
        return {
            "schema_version": _SCHEMA_VERSION,
            "plan": self.plan.to_json(),
            "made_from": made_from(self.plan),
            "front": [trial.number for trial in self.front],
            "trials": [trial.to_json() for trial in self.trials],
            "seeds": self.seeds,
            "over_budget": self.over_budget,
            "table_error": None if error is None else asdict(error),
        }


def search(plan: SearchPlan, out: Path, *, jobs: int = 1, table: Path | None = None) -> SearchResult:
    """Look for the best networks within a budget, or go on with a search that was stopped.

    With one job the same plan gives the same candidates, and a search that was killed goes on as if it had not been.

    Args:
        plan: what is looked for.
        out: gets ``search.json``, the bundles, the cache that all trials share, and Optuna's journal.
        jobs: how many at a time, each in a process of its own.
        table: the costs of layers, measured if the file is not there; left out, ``out/cost_table.json``.

    Raises:
        UsageError: the plan makes no sense, all of the space is over the budget, or ``out`` has another search.
        RecipeError: a key of the space is not in recipes, or cannot have one of its values.
        ModelError: the factory does not take an argument.
        MissingDependencyError: Optuna is not installed, or the emulation that counts instructions is not set up.
    """
    with stage("search"):
        refuse_nonsense(plan)
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / ".search.lock"):
            result = _read(plan, out / RESULT)
            if not (out / RESULT).is_file():
                (out / JOURNAL).unlink(missing_ok=True)  # of a search that was refused
            sampling = Sampling(out, plan.space, plan.objectives, plan.sampler, plan.seed)
            foresight = Foresight(plan, table or out / TABLE)
            running = _Search(result, foresight, sampling, out)
            running.choose_seeds()
            with workers(jobs) as pool:
                running.run(pool, jobs)
    return result


@dataclass(frozen=True)
class _Drawn:
    """A candidate that is being built."""

    number: int
    asked: optuna.trial.Trial
    point: Point
    foreseen: dict[str, float]


class _Search:
    """The loop of one search; all that it finds is in ``result``, and on disk at once."""

    def __init__(self, result: SearchResult, foresight: Foresight, sampling: Sampling, out: Path) -> None:
        self._result, self._plan = result, result.plan
        self._foresight, self._sampling, self._out = foresight, sampling, out
        self._known = {_name(trial.point): trial for trial in result.trials}

    def choose_seeds(self) -> None:
        """Choose the points to try first, unless an earlier call did."""
        if not self._result.seeds:
            self._result.seeds = self._foresight.best(max(1, min(_MAX_SEEDS, self._plan.trials // 3)))
            self._save()

    def run(self, pool: Executor, jobs: int) -> None:
        """Build candidates until there are as many as planned, or the space has no others within the budget."""
        trials = self._plan.trials
        waiting: dict[Future[TrialResult], _Drawn] = {}
        idle = 0
        while True:
            while len(waiting) < jobs and len(self._known) + len(waiting) < trials and idle < _MAX_IDLE:
                drawn = self._draw(len(self._known) + len(waiting), [item.point for item in waiting.values()])
                idle = 0 if drawn else idle + 1
                if drawn:
                    waiting[pool.submit(_build, self._plan, drawn.point, self._out, drawn.number)] = drawn
            if not waiting:
                break
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                self._end(waiting.pop(future), future.result())
        if len(self._known) < trials:
            logger.warning(
                "%d of %d trials: the last %d candidates drawn were known or over the budget",
                len(self._known), trials, _MAX_IDLE,
            )  # fmt: skip

    def _draw(self, number: int, running: Collection[Point]) -> _Drawn | None:
        """Draw a candidate; one that is known, runs now or is over the budget is told to the sampler at once."""
        asked, point = self._sampling.ask(self._result.seeds)
        if (known := self._known.get(_name(point))) is not None:
            self._tell(asked, known)
            return None
        if point in running:
            self._sampling.tell(asked, None, {})
            return None
        try:
            foreseen = self._foresight.figures(point)
        except EdgeoptError as error:  # what one value alone can be, two together may not
            self._keep(asked, SearchTrial(number, point, {}, _not_built(self._plan, point, error)))
            logger.info("trial %d: %s", number, error)
            return None
        excess = self._foresight.excess(foreseen)
        if max(excess.values(), default=0) > 0:
            self._sampling.tell(asked, None, excess)
            self._result.over_budget.append({"point": point, "foreseen": foreseen})
            return None
        return _Drawn(number, asked, point, foreseen)

    def _end(self, drawn: _Drawn, built: TrialResult) -> None:
        trial = SearchTrial(drawn.number, drawn.point, drawn.foreseen, built)
        self._keep(drawn.asked, trial)
        shown = ", ".join(
            f"{name} {figure_text(trial.figures[name])}" for name in self._plan.figures if name in trial.figures
        )
        logger.info("trial %d: %s", trial.number, shown or built.error)

    def _keep(self, asked: optuna.trial.Trial, trial: SearchTrial) -> None:
        self._known[_name(trial.point)] = trial
        self._result.trials = sorted(self._known.values(), key=lambda item: item.number)
        self._save()
        self._tell(asked, trial)

    def _tell(self, asked: optuna.trial.Trial, trial: SearchTrial) -> None:
        values = [trial.figures[item.figure] for item in self._plan.objectives if item.figure in trial.figures]
        is_whole = trial.is_measured(self._plan)
        self._sampling.tell(asked, values if is_whole else None, trial.excess(self._plan))

    def _save(self) -> None:
        write_text(self._out / RESULT, canonical_json(self._result.to_json()))


def figure_text(figure: float) -> str:
    """Return a figure as people read it: counts whole, measures with four digits."""
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.4g}"


def _build(plan: SearchPlan, point: Point, out: Path, number: int) -> TrialResult:
    with stage(f"trial {number}"), inner_stages(), _epochs_unsaid():
        counted = "instructions" in plan.figures
        return run_trial(plan.recipe, plan.target, plan.values(point), out, instructions=counted)


@contextmanager
def _epochs_unsaid() -> Iterator[None]:
    """Log warnings only, unless everything is asked for: a search has thousands of epochs."""
    before = logger.level
    logger.setLevel(max(before, logging.WARNING) if before != logging.DEBUG else before)
    try:
        yield
    finally:
        logger.setLevel(before)


def _not_built(plan: SearchPlan, point: Point, error: EdgeoptError) -> TrialResult:
    return TrialResult(plan.target, plan.values(point), "failed", str(error), 0.0)


def _read(plan: SearchPlan, path: Path) -> SearchResult:
    """Return what an earlier call of the same search found.

    Raises:
        UsageError: there is another search, or what is there cannot be read.
    """
    if not path.is_file():
        return SearchResult(plan)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        trials = [SearchTrial.from_json(item) for item in content["trials"]]
        result = SearchResult(plan, trials, content["seeds"], content["over_budget"])
        same = (content["plan"], content["made_from"]) == (_plain(plan.to_json()), made_from(plan))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a search: {error!r}", hint="choose another folder with --out") from error
    if not same:
        raise UsageError(
            f"{path} is another search: of another recipe, space, budget, objective, sampler or seed",
            hint="choose another folder with --out, or give the same command to go on with it",
        )
    return result


def made_from(plan: SearchPlan) -> str:
    """Return a hash of the recipe and the network's files: with others, what was found is no longer true."""
    loaded = plan.load({})
    return digest_of([canonical_json(loaded.resolved()), *fingerprint(model_files(loaded.recipe.model, loaded.folder))])


def _plain(content: Mapping[str, Any]) -> Any:
    return json.loads(canonical_json(content))


def _name(point: Mapping[str, object]) -> str:
    return canonical_json(dict(point))
