"""``edgeopt train``: the training and the compression of a recipe, in one process or in those of torchrun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import print_table, reporting, shown_path, write_json
from edgeopt.cli.options import RecipeName, json_option, verbosity_options

if TYPE_CHECKING:
    from edgeopt.training_run import TrainResult

_EXAMPLES = """\b
Examples:
  edgeopt train mnist5k                                    what edgeopt build does first
  edgeopt train my.toml --set train.devices=2              in two processes of this machine
  torchrun --nproc-per-node 2 -m edgeopt train my.toml     in those of torchrun
  edgeopt train my.toml --set train.strategy=fsdp --set train.devices=2
"""


@click.command(epilog=_EXAMPLES)
@click.argument("recipe", type=RecipeName())
@click.option(
    "-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Where the cache is.  [default: build]"
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the recipe, as edgeopt build does.",
)
@json_option
@click.option("--force", is_flag=True, help="Train anew, cached or not.")
@verbosity_options
def train(
    recipe: str,
    out: Path | None,
    overrides: tuple[str, ...],
    json_to: str | None,
    force: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Train and compress the network of RECIPE, and no more.

    The result goes to the cache, where edgeopt build finds it. Under torchrun all its processes train together, and
    the first one speaks. Interrupted or killed, the same command goes on from the last epoch.
    """
    helps = int(os.environ.get("RANK", "0")) > 0
    with reporting(verbose=verbose and not helps, quiet=quiet or helps):
        from edgeopt.recipe import load_recipe, parse_override

        loaded = load_recipe(recipe, dict(parse_override(text) for text in overrides))
        from edgeopt import training_run
        from edgeopt.pipeline import DEFAULT_OUT

        result = training_run.train(loaded, out=out or DEFAULT_OUT, force=force)
    if result is None:
        return
    write_json(json_to, result.to_json())
    if json_to != "-" and not quiet:
        _show(result)


def _show(result: TrainResult) -> None:
    stages = ((item.name, "cached" if item.cached else f"{item.seconds:.1f} s", item.summary) for item in result.stages)
    print_table(("stage", "time", "result"), stages)
    click.echo(f"\n{shown_path(result.weights)}")
