"""``edgeopt verify``: run a bundle and say yes or no."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import percent_text, print_table, reporting, write_json
from edgeopt.cli.options import json_option, verbosity_options
from edgeopt.cli.report import OUTPUT_COLUMNS, output_cells

if TYPE_CHECKING:
    from edgeopt.verdict import ParityReport

_EXAMPLES = """\b
Examples:
  edgeopt verify build/mnist5k/arm64
  edgeopt verify build/mnist5k/arm64 --runtime tensorflow    a second opinion
  edgeopt verify build/mnist5k/x86 --json parity.json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runtime", metavar="NAME", help="Run it in this runtime.  [default: the target's own]")
@json_option
@verbosity_options
def verify(bundle: Path, runtime: str | None, json_to: str | None, verbose: bool, quiet: bool) -> None:
    """Run BUNDLE and compare it with its references.

    Two questions: does the device answer what the quantized reference answers, in integer steps; and how far is the
    quantized network from the float one. The exit code is 0 for yes and 12 for no.
    """
    with reporting(verbose=verbose, quiet=quiet):
        from edgeopt.verdict import verify as verify_bundle

        report = verify_bundle(bundle, runtime=runtime)
    write_json(json_to, report.to_json())
    if json_to != "-" and not quiet:
        _show(report)
    if not report.passed:
        from edgeopt.errors import ParityError

        raise ParityError(f"{bundle} in {report.runtime}: " + "; ".join(report.failures))


def _show(report: ParityReport) -> None:
    print_table(OUTPUT_COLUMNS, (output_cells(output, steps_judged=report.steps_judged) for output in report.outputs))
    verdict = "passed" if report.passed else "failed"
    coverage = percent_text(report.integer_coverage)
    click.echo(f"\n{verdict} in {report.runtime} on {report.num_samples} samples")
    click.echo(f"{coverage} of the multiply-accumulates run on integers")
