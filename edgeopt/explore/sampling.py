"""Where candidates come from: an Optuna study in a journal file, so that a search that was killed goes on.

Each candidate is drawn by a sampler that is seeded anew, with the number of candidates before it. What a killed search
drew and did not finish is drawn again, and all behind it are the same as without the kill.

Source: Bergstra et al.: Algorithms for Hyper-Parameter Optimization, 2011 (TPE); Deb et al.: A Fast and Elitist
Multiobjective Genetic Algorithm: NSGA-II, 2002; Akiba et al.: Optuna, 2019, arXiv 1907.10902.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeopt.errors import MissingDependencyError
from edgeopt.explore.pareto import Objective
from edgeopt.explore.space import Choices, Dimension, Space

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "nsga2"]
Point = dict[str, object]

JOURNAL, _JOURNAL_LOCK = "optuna.journal", "optuna.journal.lock"
_STARTUP_TRIALS = 8  # random ones, before TPE has something to go by
_POPULATION = 12


class Sampling:
    """Asks Optuna for candidates and tells it what came of them.

    Args:
        folder: gets the journal; one that is there is continued. No other search may run there.
        space: what candidates are drawn from.
        objectives: what a complete candidate is told with, in this order.
        sampler: ``tpe`` or ``nsga2``.
        seed: of all draws.

    Raises:
        MissingDependencyError: Optuna is not installed.
    """

    def __init__(
        self, folder: Path, space: Space, objectives: Sequence[Objective], sampler: Sampler, seed: int
    ) -> None:
        self._optuna = _import_optuna()
        self._space, self._sampler, self._seed = space, sampler, seed
        self._distributions = {key: self._distribution(dimension) for key, dimension in space.items()}
        (folder / _JOURNAL_LOCK).unlink(missing_ok=True)  # of a search that was killed while it wrote
        journal = self._optuna.storages.journal
        with _quiet():
            self._study = self._optuna.create_study(
                storage=self._optuna.storages.JournalStorage(journal.JournalFileBackend(str(folder / JOURNAL))),
                study_name="search",
                directions=["maximize" if item.maximize else "minimize" for item in objectives],
                load_if_exists=True,
            )
            for trial in self._study.get_trials(states=[self._states.RUNNING]):
                self._study.tell(trial.number, state=self._states.FAIL)  # a search that was killed asked for it

    def ask(self, seeds: Sequence[Point] = ()) -> tuple[optuna.trial.Trial, Point]:
        """Return the next candidate: one of ``seeds``, in their order, as long as there are some."""
        index = len(self._study.get_trials(deepcopy=False)) - self._num_failed()
        self._study.sampler = self._new_sampler((self._seed * 1_000_003 + index) % 2**32)
        with _quiet():
            if index < len(seeds):
                self._study.enqueue_trial({key: self._encoded(key, value) for key, value in seeds[index].items()})
            trial = self._study.ask(self._distributions)
        return trial, {key: self._decoded(key, value) for key, value in trial.params.items()}

    def tell(self, trial: optuna.trial.Trial, values: Sequence[float] | None, excess: Mapping[str, float]) -> None:
        """Tell what a candidate's objectives are; without values it was not built.

        Args:
            trial: of :meth:`ask`.
            values: of the objectives, in their order.
            excess: by how much, relatively, each limit is exceeded; what keeps it has 0 or less.
        """
        for name, share in excess.items():
            trial.set_constraint(name, share)
        with _quiet():
            if values is None:
                self._study.tell(trial, state=self._states.PRUNED)
            else:
                self._study.tell(trial, list(values))

    @property
    def _states(self) -> Any:
        return self._optuna.trial.TrialState

    def _num_failed(self) -> int:
        return len(self._study.get_trials(deepcopy=False, states=[self._states.FAIL]))

    def _new_sampler(self, seed: int) -> Any:
        if self._sampler == "nsga2":
            return self._optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=seed)
        return self._optuna.samplers.TPESampler(
            n_startup_trials=_STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed
        )

    def _distribution(self, dimension: Dimension) -> Any:
        kinds = self._optuna.distributions
        if isinstance(dimension, Choices):
            return kinds.CategoricalDistribution([json.dumps(value) for value in dimension.values])
        kind = kinds.IntDistribution if dimension.is_int else kinds.FloatDistribution
        return kind(dimension.low, dimension.high, log=dimension.is_log)

    def _encoded(self, key: str, value: object) -> Any:
        return json.dumps(value) if isinstance(self._space[key], Choices) else value

    def _decoded(self, key: str, value: Any) -> object:
        dimension = self._space[key]
        return json.loads(value) if isinstance(dimension, Choices) else dimension.fitted(value)


def _import_optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a search needs Optuna, which is not installed", hint="pip install 'edgeopt[search]'"
        ) from error
    return optuna


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's own lines off the terminal."""
    optuna = _import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
