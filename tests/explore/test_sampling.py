"""Real Optuna on a function that takes no time: the same draws after a stop, and both samplers learn."""

import sys
import time
from pathlib import Path

import pytest

from edgeopt.errors import MissingDependencyError
from edgeopt.explore.pareto import Objective
from edgeopt.explore.sampling import Point, Sampler, Sampling
from edgeopt.explore.space import Choices, Range

SPACE = {"width": Range(0.25, 1.0), "depth": Range(1, 4), "shape": Choices(([1, 2], [3, 4]))}
OBJECTIVES = (Objective("metric", maximize=True), Objective("num_macs"))
SEEDS: list[Point] = [{"width": 0.5, "depth": 2, "shape": [3, 4]}]


def step(sampling: Sampling) -> Point:
    """Ask, and tell what a network that learns more the wider it is would have."""
    trial, point = sampling.ask(SEEDS)
    cost = point["width"] ** 2 * point["depth"]
    is_over = cost > 1.5
    sampling.tell(
        trial, None if is_over else (point["width"] + point["depth"] / 10, cost), {"num_macs": cost / 1.5 - 1}
    )
    return point


def opened(folder: Path, sampler: Sampler, seed: int = 0) -> Sampling:
    folder.mkdir(exist_ok=True)
    return Sampling(folder, SPACE, OBJECTIVES, sampler, seed)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_sampling_draws_the_same_points_when_it_was_stopped_between(tmp_path: Path, sampler: Sampler) -> None:
    whole = opened(tmp_path / "whole", sampler)
    points = [step(whole) for _ in range(26)]
    stopped = opened(tmp_path / "stopped", sampler)
    first = [step(stopped) for _ in range(15)]
    _, unfinished = stopped.ask(SEEDS)
    again = opened(tmp_path / "stopped", sampler)
    assert first + [step(again) for _ in range(11)] == points
    assert unfinished == points[15]
    assert points[0] == SEEDS[0]


def test_sampling_goes_on_at_once_when_it_was_killed_while_it_wrote(tmp_path: Path) -> None:
    first = step(opened(tmp_path, "tpe"))
    (tmp_path / "optuna.journal.lock").symlink_to(tmp_path / "optuna.journal")
    start = time.monotonic()
    assert step(opened(tmp_path, "tpe")) != first
    assert time.monotonic() - start < 20  # Optuna waits 30 s for the one that holds it


def test_sampling_draws_other_points_when_the_seed_is_another(tmp_path: Path) -> None:
    one, other = (opened(tmp_path / str(seed), "tpe", seed) for seed in (0, 1))
    assert [step(one) for _ in range(3)][1:] != [step(other) for _ in range(3)][1:]


def test_sampling_draws_when_the_seed_is_large(tmp_path: Path) -> None:
    sampling = opened(tmp_path, "tpe", 2**31 - 1)
    assert all(step(sampling) for _ in range(3))


def test_sampling_has_values_of_the_space_when_they_are_drawn(tmp_path: Path) -> None:
    sampling = opened(tmp_path, "tpe")
    for point in (step(sampling) for _ in range(10)):
        assert point["shape"] in ([1, 2], [3, 4])
        assert isinstance(point["depth"], int)
        assert point["width"] == float(f"{point['width']:.4g}")


def test_sampling_says_what_to_install_when_optuna_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"(?s)Optuna.*pip install 'edgeopt\[search\]'"):
        opened(tmp_path, "tpe")


def test_sampling_writes_nothing_to_the_terminal_when_it_draws(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    step(opened(tmp_path, "tpe"))
    assert capfd.readouterr() == ("", "")
