"""Real searches over real builds of tiny networks: fronts, budgets, and going on after a stop."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from digits_project import write_digits_project
from tiny_project import command, edgeopt_run, environment

from edgeopt.cli.main import main
from edgeopt.devices.qemu import Emulation
from edgeopt.errors import EdgeoptError, ModelError, RecipeError, TargetError, UsageError
from edgeopt.explore.best_recipe import write_recipe
from edgeopt.explore.candidate import foresee
from edgeopt.explore.foresight import Foresight
from edgeopt.explore.pareto import Objective
from edgeopt.explore.plan import SearchPlan, plan_for
from edgeopt.explore.search import SearchResult, SearchTrial, search
from edgeopt.explore.space import Choices, Range
from edgeopt.explore.trial import run_trial
from edgeopt.recipe import load_recipe

BUDGET = 9000
SPACE = ("model.arguments.width=0.25:1.5", "model.arguments.kernel=1,3", "model.inputs.image.shape=[1,1,8,8],[1,1,4,4]")
OPTIONS = [*(part for text in SPACE for part in ("--space", text)), "--budget", f"num_macs={BUDGET}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits_project(tmp_path_factory.mktemp("search") / "project")


@pytest.fixture(scope="module")
def plan(folder: Path) -> SearchPlan:
    return plan_for(folder / "edgeopt.toml")


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    """A folder in which the command has searched; what it printed is in ``stdout``."""
    ended = edgeopt_run(folder, "search", "edgeopt.toml", *OPTIONS, "--out", "out", "--best-recipe", "best.toml")
    assert ended.returncode == 0, ended.stderr
    (folder / "out/stdout").write_text(ended.stdout)
    return folder / "out"


def read(out: Path) -> dict:
    return json.loads((out / "search.json").read_text())


def essence(found: Mapping) -> list:
    """Return what two searches must have in common: points and figures, but no seconds."""
    return [(trial["number"], trial["point"], trial["result"]["figures"]) for trial in found["trials"]]


# ---------------------------------------------------------------- what is found


def test_front_is_what_no_network_within_the_budget_beats_when_compared_by_hand(out: Path) -> None:
    found = read(out)
    figures = {trial["number"]: trial["result"]["figures"] for trial in found["trials"]}
    assert len(figures) == 4
    within = {number: item for number, item in figures.items() if item["num_macs"] <= BUDGET}

    def is_beaten(one: dict) -> bool:
        return any(
            other["metric"] >= one["metric"]
            and other["num_macs"] <= one["num_macs"]
            and (other["metric"], other["num_macs"]) != (one["metric"], one["num_macs"])
            for other in within.values()
        )

    expected = {number for number, item in within.items() if not is_beaten(item)}
    assert set(found["front"]) == expected
    assert found["front"]


def test_nothing_over_the_budget_is_built_when_structure_tells_it(out: Path) -> None:
    found = read(out)
    for trial in found["trials"]:  # the averages before the last layer run as a convolution
        assert trial["foreseen"]["num_macs"] <= min(BUDGET, trial["result"]["figures"]["num_macs"])
    assert all(item["foreseen"]["num_macs"] > BUDGET for item in found["over_budget"])


def test_first_trial_is_the_seed_when_there_is_one(out: Path) -> None:
    found = read(out)
    assert [found["trials"][0]["point"]] == found["seeds"]


def test_seeds_are_larger_the_more_they_cost_when_there_are_several(tmp_path: Path, plan: SearchPlan) -> None:
    foresight = Foresight(replace(plan, budget={"num_macs": BUDGET}), tmp_path / "table.json")
    figures = [foresight.figures(point) for point in foresight.best(3)]
    assert len(figures) == 3
    for larger, smaller in pairwise(figures):
        assert BUDGET >= larger["num_macs"] > smaller["num_macs"]
        assert larger["num_parameters"] > smaller["num_parameters"]


def test_every_line_of_the_front_builds_the_same_network_when_it_is_a_command(folder: Path, out: Path) -> None:
    lines = [line for line in (out / "stdout").read_text().splitlines() if line.startswith("edgeopt build ")]
    found = read(out)
    assert len(lines) == len(found["front"])
    options = lines[0].split(" ", 2)[2]
    shutil.copytree(out / ".cache", folder / "again/.cache")
    ended = subprocess.run(
        ["sh", "-c", " ".join([*command("build"), options, "--out again --quiet --json -"])],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    best = found["trials"][found["front"][0]]["result"]["figures"]
    assert json.loads(ended.stdout)["bundles"][0]["parity"]["outputs"][0]["accuracy"] == best["metric"], ended.stderr


def test_best_recipe_is_that_of_the_best_point_when_it_is_loaded(folder: Path, out: Path) -> None:
    found = read(out)
    point = found["trials"][found["front"][0]]["point"]
    expected = load_recipe(folder / "edgeopt.toml", point).recipe
    assert load_recipe(folder / "best.toml").recipe == replace(expected, name="best", search=None)


def test_write_recipe_keeps_steps_by_name_when_the_recipe_has_some(folder: Path, out: Path) -> None:
    path = folder / "pruned.toml"
    path.write_text((folder / "edgeopt.toml").read_text() + '[[compress]]\nmethod = "prune"\nname = "first"\n')
    plan = plan_for(path, space={"compress.first.pruning_ratio": Range(0.1, 0.5)})
    trial = replace(result_in(out, plan).trials[0], point={"compress.first.pruning_ratio": 0.25})
    write_recipe(trial, plan, folder / "written.toml")
    expected = plan.load(trial.point).recipe
    written = load_recipe(folder / "written.toml").recipe
    assert written == replace(expected, name="written", search=None, latency=written.latency)


def result_in(out: Path, plan: SearchPlan) -> SearchResult:
    return SearchResult(plan, [SearchTrial.from_json(item) for item in read(out)["trials"]])


# ---------------------------------------------------------------- going on


def started(folder: Path, num_trials: int) -> subprocess.Popen[str]:
    """Start the search in ``stopped``, and wait until so many trials have ended."""
    process = subprocess.Popen(
        command("search", "edgeopt.toml", *OPTIONS, "--out", "stopped"),
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path, end = folder / "stopped/search.json", time.monotonic() + 120
    while time.monotonic() < end and not (path.is_file() and len(read(path.parent)["trials"]) >= num_trials):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


def test_search_goes_on_with_the_same_trials_when_it_was_interrupted_and_killed(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(out / ".cache", folder / "stopped/.cache")
    interrupted = started(folder, 1)
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, errors
    assert "interrupted; finished trials are in stopped; run the same command again to go on" in errors
    assert len(read(folder / "stopped")["trials"]) < 4
    killed = started(folder, 2)
    killed.kill()
    killed.communicate(timeout=60)
    assert len(read(folder / "stopped")["trials"]) < 4
    monkeypatch.chdir(folder)
    assert main(["search", "edgeopt.toml", *OPTIONS, "--out", "stopped", "--quiet"]) == 0
    assert essence(read(folder / "stopped")) == essence(read(out))


def test_search_is_refused_when_the_folder_has_another_one(folder: Path, out: Path, plan: SearchPlan) -> None:
    with pytest.raises(UsageError, match="is another search"):
        search(replace(plan, seed=1), out)


def known(plan: SearchPlan, out: Path, folder: Path, num_golden: tuple[int, ...]) -> SearchPlan:
    """Return a plan whose builds are in the cache but for their golden vectors; ``folder`` gets that cache."""
    shutil.copytree(out / ".cache", folder / ".cache")
    space = {"calibration.num_golden": Choices(num_golden)}
    return replace(plan, space=space, base=read(out)["trials"][0]["point"], trials=2)


def test_search_builds_each_point_once_when_there_are_two_jobs(tmp_path: Path, out: Path, plan: SearchPlan) -> None:
    found = search(known(plan, out, tmp_path, (2, 3)), tmp_path, jobs=2)
    assert [(trial.number, trial.result.status) for trial in found.trials] == [(0, "ok"), (1, "ok")]


def test_search_ends_when_the_space_has_no_more_networks(
    tmp_path: Path, out: Path, plan: SearchPlan, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(search(known(plan, out, tmp_path, (2,)), tmp_path).trials) == 1
    assert "1 of 2 trials" in caplog.text


# ---------------------------------------------------------------- before anything starts


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        ({"model.argument.width": Range(0.1, 1.0)}, RecipeError, "unknown key 'argument'"),
        ({"trian.epochs": Choices((1, 2))}, RecipeError, "(?s)unknown key 'trian'.*did you mean 'train'"),
        ({"train.epochs": Choices((1, "many"))}, RecipeError, "expected an integer"),
        ({"model.arguments.widht": Range(0.1, 1.0)}, ModelError, "(?s)takes no 'widht'.*did you mean 'width'"),
        ({"model.arguments.depth": Choices((1, 3))}, ModelError, r"refuses \(depth=3\): depth is at most 2"),
        ({"compress.prune.pruning_ratio": Range(0.5, 1.5)}, RecipeError, "pruning ratio must be in"),
    ],
)
def test_search_refuses_a_space_before_it_starts_when_a_value_cannot_be(
    folder: Path, plan: SearchPlan, space: dict, error: type[EdgeoptError], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(replace(plan, space=space), folder / "never")
    assert not (folder / "never").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minimize", "num_mac"], "did you mean 'num_macs'"),
        (["--maximize", "num_macs"], "is an objective twice"),
        (["--budget", "num_macs=few"], "expected FIGURE=NUMBER, got 'num_macs=few'"),
        (["--budget", "num_macs=0"], "a budget is a number above 0, got num_macs=0"),
        (["--budget", "num_macs=inf"], "a budget is a number above 0, got num_macs=inf"),
        (["--budget", "metric=0.9"], "metric is no cost"),
        (["--best-recipe", "edgeopt.toml"], "is the recipe that is searched"),
        (["--target", "x86", "--budget", "instructions=5"], "instructions are counted for arm64"),
        (["--best-recipe", "/tmp/best.toml"], "start at its own folder"),
        (["--budget", "num_macs=10"], "none of the 12 networks drawn is within the budget"),
    ],
)
def test_search_says_what_is_wrong_when_options_make_no_sense(
    folder: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(["search", "edgeopt.toml", *options, "--out", "never"]) == 2
    assert message in capsys.readouterr().err


def test_search_refuses_a_target_that_is_not_there(folder: Path, plan: SearchPlan) -> None:
    with pytest.raises(TargetError, match="nosuch"):
        search(replace(plan, target="nosuch"), folder / "never")


def test_search_begins_anew_when_the_one_before_was_refused(tmp_path: Path, plan: SearchPlan) -> None:
    refused = replace(plan, space={"model.arguments.width": Choices((0.25, 0.5))}, budget={"num_macs": 1.0}, trials=1)
    with pytest.raises(UsageError, match="is within the budget"):
        search(refused, tmp_path)
    objectives = (*plan.objectives, Objective("model_bytes"))  # one more than Optuna's study had
    other = replace(refused, budget={}, objectives=objectives)
    assert len(search(other, tmp_path).trials) == 1


def test_search_says_so_and_fails_when_no_network_can_be_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    options = ["--space", "train.learning_rate=1e30,1e31", "--trials", "2", "--out", str(tmp_path / "out")]
    assert main(["search", "edgeopt.toml", *options]) == 1
    shown = capsys.readouterr()
    assert "0 networks built, 2 failed" in shown.out
    assert "none of 2 networks could be built: " in shown.err


def test_plan_for_takes_a_figure_down_when_the_recipe_would_take_it_up(folder: Path) -> None:
    plan = plan_for(folder / "edgeopt.toml", minimize=["metric"])  # an error, that is
    assert plan.objectives == (Objective("metric"),)


# ---------------------------------------------------------------- foreseen and measured


def test_foresee_counts_what_a_build_has_when_a_step_prunes(folder: Path) -> None:
    recipe = folder / "to_prune.toml"
    recipe.write_text((folder / "edgeopt.toml").read_text() + '[[compress]]\nmethod = "prune"\nround_to = 4\n')
    foreseen = foresee(load_recipe(recipe))
    built = run_trial(recipe, "arm64", {"latency.compare": False}, folder / "pruned").figures
    assert foreseen.num_parameters == built.num_parameters
    assert foreseen.num_macs < foresee(load_recipe(folder / "edgeopt.toml")).num_macs


def test_table_of_layers_foresees_instructions_when_a_network_is_counted(
    tmp_path: Path, out: Path, plan: SearchPlan, emulation: Emulation
) -> None:
    objectives = (*plan.objectives[:1], Objective("instructions"))
    counted = replace(
        known(plan, out, tmp_path, (2,)), objectives=objectives, budget={"instructions": 60_000}, trials=1
    )
    found = search(counted, tmp_path)
    table = json.loads((tmp_path / "cost_table.json").read_text())
    assert table["measured"]["device"] == "qemu:pi4"
    assert found.table_error is not None
    assert found.table_error.mean_relative_error < 0.15
    assert found.front == found.trials
