"""``edgeopt diff``: where two forms of a network part, tensor by tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from edgeopt.cli.console import print_table, reporting, write_json
from edgeopt.cli.options import RecipeName, TargetName, json_option, verbosity_options
from edgeopt.errors import ParityError

if TYPE_CHECKING:
    from edgeopt.diff.comparison import TensorDifference
    from edgeopt.diff.difference import Difference

_BAR_DB, _BAR_WIDTH = 60.0, 20

_EXAMPLES = """\b
Examples:
  edgeopt diff float bundle                            the float graph and the arm64 bundle of ./edgeopt.toml
  edgeopt diff torch float --recipe mnist5k            did the export change anything
  edgeopt diff qdq bundle -t x86 --samples 2           did the lowering
  edgeopt diff float build/mnist5k/arm64 --recipe mnist5k --json - | jq .finding
  edgeopt diff float bundle --plot diff.svg --check    a picture; exit code 12 if a tensor is under the limit
"""


@click.command(epilog=_EXAMPLES)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("-r", "--recipe", type=RecipeName(), help="Whose network.  [default: ./edgeopt.toml, else mnist5k]")
@click.option("-t", "--target", type=TargetName(), default="arm64", show_default=True, help="Whose graph and bundle.")
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Where builds are.  [default: build]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a value of the recipe.")
@click.option("--split", type=click.Choice(["held_out", "calibration"]), default="held_out", show_default=True)
@click.option("--samples", "num_samples", metavar="N", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--sample", "only", multiple=True, metavar="NAME", help="One of these alone; can be given several times.")
@click.option("--min-sqnr", "limit_db", metavar="DB", type=float, default=20.0, show_default=True, help="The limit.")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw the ratios into an SVG file.")
@click.option("--check", is_flag=True, help="End with exit code 12 if a tensor is under the limit.")
@json_option
@verbosity_options
def diff(
    first: str,
    second: str,
    recipe: str | None,
    target: str,
    out: Path | None,
    overrides: tuple[str, ...],
    split: str,
    num_samples: int,
    only: tuple[str, ...],
    limit_db: float,
    plot: Path | None,
    check: bool,
    json_to: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run A and B alike, and name the first tensor that differs.

    A and B are forms of one recipe's network: torch, float (the ONNX graph), corrected (that with what [correct]
    changed), qdq (the quantized one), bundle, or the path of a bundle or of a float .onnx file. Against a quantized
    form, float is the corrected graph: an equalized tensor is scaled on purpose.

    Tensors are matched by what the pipeline recorded when it made them. The ratio of signal to difference is in dB:
    6 dB are one bit, 200 is equality.
    """
    with reporting(verbose=verbose, quiet=quiet):
        from edgeopt.diff.difference import diff as compare
        from edgeopt.recipe import default_recipe, load_recipe, parse_override

        loaded = load_recipe(recipe or default_recipe(), dict(parse_override(text) for text in overrides))
        found = compare(
            first,
            second,
            recipe=loaded,
            target=target,
            out=out,
            split=cast(Literal["held_out", "calibration"], split),
            num_samples=num_samples,
            only=only,
            limit_db=limit_db,
        )
    write_json(json_to, found.to_json())
    if plot is not None:
        from edgeopt.atomic import write_text
        from edgeopt.cli.diff_plot import svg

        write_text(plot, svg(found))
    if json_to != "-" and not quiet:
        _show(found)
    if check and found.finding is not None:
        raise ParityError(f"{found.finding.tensor.name}: under {limit_db:g} dB")


def _show(found: Difference) -> None:
    print_table(
        ("tensor", "operator", "dB", "", "cosine", "largest error", "range of A"),
        (_cells(tensor) for tensor in found.tensors),
    )
    click.echo(f"\n{found.second} against {found.first} on {len(found.samples)} samples")
    if found.finding is None:
        click.echo(f"no tensor is under {found.limit_db:g} dB")
        return
    tensor, tail = found.finding.tensor, found.finding.tensor.tail
    click.echo(
        f"first under {found.limit_db:g} dB: {tensor.name}, made by {tensor.operator} {tensor.node}: "
        f"{_decibels(tensor)} dB, worst on {tensor.worst_sample}"
    )
    click.echo(
        f"  values in [{tensor.minimum:.4g}, {tensor.maximum:.4g}]; magnitudes: half below {tail.median:.4g}, 99 % "
        f"below {tail.p99:.4g}, 99.9 % below {tail.p999:.4g}, 99.99 % below {tail.p9999:.4g}"
    )
    for piece in found.finding.advice:
        click.echo(f"  mend: {piece}")


def _cells(tensor: TensorDifference) -> tuple[str, ...]:
    share = 0.0 if math.isnan(tensor.sqnr_db) else min(max(tensor.sqnr_db / _BAR_DB, 0.0), 1.0)
    return (
        tensor.name,
        tensor.operator,
        _decibels(tensor),
        "#" * round(share * _BAR_WIDTH),
        f"{tensor.cosine:.5f}",
        f"{tensor.max_error:.3g}",
        f"{tensor.minimum:.3g} to {tensor.maximum:.3g}",
    )


def _decibels(tensor: TensorDifference) -> str:
    return "NaN" if math.isnan(tensor.sqnr_db) else f"{tensor.sqnr_db:.1f}"
