"""``edgeopt search``: the best networks of a family within a target's budget."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgeopt.cli.console import print_table, reporting, shown_path, write_json
from edgeopt.cli.options import RecipeName, TargetName, json_option, verbosity_options
from edgeopt.errors import EdgeoptError, UsageError

if TYPE_CHECKING:
    from edgeopt.explore.search import SearchResult, SearchTrial

_EXAMPLES = """\b
Examples:
  edgeopt search mnist5k --space model.arguments.width=0.25:1.0 --space compress.prune.pruning_ratio=0.1:0.7
  edgeopt search my.toml --space model.arguments.depth=1,2,3 --minimize instructions --budget instructions=600000
  edgeopt search my.toml --space 'model.inputs.image.shape=[1,3,64,64],[1,3,96,96]' --budget latency_ms=2 --trials 50
  edgeopt search my.toml --best-recipe best.toml       with [search] in the recipe; the best point as a recipe
"""


@click.command(epilog=_EXAMPLES)
@click.argument("recipe", type=RecipeName())
@click.option(
    "-t", "--target", metavar="NAME", type=TargetName(), default="arm64", show_default=True, help="To build for."
)
@click.option(
    "--space",
    "dimensions",
    multiple=True,
    metavar="KEY=VALUES",
    help="A recipe value to search: KEY=a,b,c or KEY=LOW:HIGH or KEY=LOW:HIGH:log. Several make a space.",
)
@click.option("--maximize", multiple=True, metavar="FIGURE", help="An objective.  [default: metric]")
@click.option("--minimize", multiple=True, metavar="FIGURE", help="An objective.  [default: num_macs]")
@click.option("--budget", multiple=True, metavar="FIGURE=MOST", help="What a network may cost at most.")
@click.option("--trials", metavar="N", type=click.IntRange(min=1), help="How many networks to build.  [default: 30]")
@click.option("--sampler", type=click.Choice(["tpe", "nsga2"]), help="How candidates are drawn.  [default: tpe]")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws.")
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at a time.")
@click.option(
    "--table",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Costs of layers, for searches to share; measured if it is not there.  [default: OUT/cost_table.json]",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a value of the recipe in every trial."
)
@click.option(
    "-o", "--out", metavar="DIR", type=click.Path(path_type=Path), default=Path("build/search"), show_default=True,
    help="Where to write; the same command goes on with what is there.",
)  # fmt: skip
@click.option(
    "--best-recipe",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the front's best point in the first objective as a recipe.",
)
@json_option
@verbosity_options
def search(
    recipe: str,
    target: str,
    dimensions: tuple[str, ...],
    maximize: tuple[str, ...],
    minimize: tuple[str, ...],
    budget: tuple[str, ...],
    trials: int | None,
    sampler: Literal["tpe", "nsga2"] | None,
    seed: int,
    jobs: int,
    table: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    best_recipe: Path | None,
    json_to: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Search RECIPE for the best networks a target affords.

    Figures are metric, model_bytes, bundle_bytes, num_parameters, num_macs, instructions (arm64, an emulated
    Raspberry Pi 4) and latency_ms (on this machine). What is over a budget by its structure, or by a table of what
    single layers cost on the target, is never trained. The front that no network beats is in OUT/search.json.
    """
    with reporting(verbose=verbose, quiet=quiet), _resumable(out):
        from edgeopt.explore.best_recipe import refuse_place, write_recipe
        from edgeopt.explore.plan import plan_for
        from edgeopt.explore.search import search as run
        from edgeopt.explore.space import parse_space
        from edgeopt.recipe import parse_override

        plan = plan_for(
            recipe, target, space=parse_space(dimensions), maximize=maximize, minimize=minimize, sampler=sampler,
            budget=dict(map(_limit, budget)), base=dict(map(parse_override, overrides)), seed=seed, trials=trials,
        )  # fmt: skip
        if best_recipe is not None:
            refuse_place(recipe, best_recipe)
        result = run(plan, out, jobs=jobs, table=table)
        if best_recipe is not None and result.front:
            write_recipe(result.front[0], plan, best_recipe)
    write_json(json_to, result.to_json())
    if json_to != "-" and not quiet:
        _show(result, out)
    if result.trials and all(trial.result.status == "failed" for trial in result.trials):
        raise EdgeoptError(f"none of {len(result.trials)} networks could be built: {result.trials[0].result.error}")


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Say on Ctrl-C what was kept; ``edgeopt.cli.main`` prints it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        kept = f"interrupted; finished trials are in {shown_path(out)}; run the same command again to go on"
        raise KeyboardInterrupt(kept) from interrupt


def _limit(text: str) -> tuple[str, float]:
    figure, _, most = text.partition("=")
    try:
        return figure.strip(), float(most)
    except ValueError as error:
        raise UsageError(f"expected FIGURE=NUMBER, got {text!r}", hint="--budget num_macs=2e6") from error


def _show(result: SearchResult, out: Path) -> None:
    """Print the front, how each of its points is built, and what is to be known of the figures."""
    plan, found = result.plan, result.front
    failed = [trial for trial in result.trials if trial.result.status == "failed"]
    built = f"{len(result.trials) - len(failed)} networks built, {len(failed)} failed"
    click.echo(f"{built}, {len(result.over_budget)} left out as over the budget")
    if not found:
        click.echo(f"none of them is within the budget and passed its verdict; see {shown_path(out / 'search.json')}")
        return
    print_table(("trial", *plan.figures, *plan.space), (list(_cells(trial, plan.figures)) for trial in found))
    click.echo()
    for trial in found:
        settings = {**plan.base, **trial.point}
        options = " ".join(shlex.quote(f"--set={key}={json.dumps(value)}") for key, value in settings.items())
        click.echo(f"edgeopt build {shlex.quote(str(plan.recipe))} --target {plan.target} {options}")
    click.echo()
    if (error := result.table_error) is not None:
        spread = "" if error.r2 is None else f", R2 {error.r2:.3f}"
        click.echo(
            f"{plan.table_figure} foreseen by the table, against {error.num_networks} networks measured: off by "
            f"{error.mean_relative_error:.1%} on average, {error.worst_relative_error:.1%} at worst{spread}"
        )
    click.echo(f"chosen on the held-out samples that all {len(result.trials)} networks were judged by: judge by others")


def _cells(trial: SearchTrial, figures: Sequence[str]) -> Iterator[str]:
    from edgeopt.explore.search import figure_text

    yield str(trial.number)
    for name in figures:
        yield figure_text(trial.figures[name])
    for chosen in trial.point.values():
        yield chosen if isinstance(chosen, str) else json.dumps(chosen)
