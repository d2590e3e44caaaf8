"""``edgeopt calibrate``: what calibration saw of each tensor, and which range it chose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import print_table, reporting, write_json
from edgeopt.cli.options import RecipeName, json_option, verbosity_options

if TYPE_CHECKING:
    from edgeopt.artifacts import TensorRange
    from edgeopt.calibrate.report import CalibrationReport, TensorReport

_EXAMPLES = """\b
Examples:
  edgeopt calibrate my.toml
  edgeopt calibrate my.toml --set calibration.method=auto --scheme symmetric
  edgeopt calibrate my.toml --set calibration.method=mse --json - | jq .tensors
"""


@click.command(epilog=_EXAMPLES)
@click.argument("recipe", required=False, type=RecipeName())
@click.option("--scheme", metavar="NAME", default="asymmetric", show_default=True, help="asymmetric or symmetric.")
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Whose cache.  [default: build]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a value of the recipe.")
@json_option
@click.option("--force", is_flag=True, help="Run every stage anew, cached or not.")
@verbosity_options
def calibrate(
    recipe: str | None,
    scheme: str,
    out: Path | None,
    overrides: tuple[str, ...],
    json_to: str | None,
    force: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Calibrate RECIPE and show each tensor's values and range.

    The stages up to the ranges are run, or found in the cache; a build of the same recipe takes them from there. The
    tail is the magnitude that 99, 99.9 and 99.99 % of the values do not exceed: far below the largest value, int8 has
    few steps left for most of them, and a method that clips is worth a try.
    """
    with reporting(verbose=verbose, quiet=quiet):
        from edgeopt.recipe import default_recipe, load_recipe, parse_override

        loaded = load_recipe(recipe or default_recipe(), dict(parse_override(text) for text in overrides))
        from edgeopt.pipeline import calibration

        report = calibration(loaded, scheme=scheme, out=out, force=force)
    write_json(json_to, report.to_json())
    if json_to != "-" and not quiet:
        _show(report)


def _show(report: CalibrationReport) -> None:
    click.echo(f"{len(report.tensors)} tensors over {report.num_samples} samples, {report.scheme}\n")
    columns = ("tensor", "observed", "chosen", "method", "clipped", "99 %", "99.9 %", "99.99 %")
    print_table(columns, map(_row, report.tensors))
    if any(tensor.tail is None for tensor in report.tensors):
        click.echo("\nno tails: minmax keeps no histograms; --set calibration.method=percentile does")


def _row(tensor: TensorReport) -> tuple[str, ...]:
    chosen = "the same" if tensor.chosen == tensor.observed else _range(tensor.chosen)
    clipped = "-" if tensor.clipped_share is None else f"{tensor.clipped_share:.4%}"
    tail = ("-", "-", "-") if tensor.tail is None else tuple(f"{value:.4g}" for value in tensor.tail)
    return (tensor.name, _range(tensor.observed), chosen, tensor.method, clipped, *tail)


def _range(item: TensorRange) -> str:
    return f"{item.minimum:.4g} to {item.maximum:.4g}"
