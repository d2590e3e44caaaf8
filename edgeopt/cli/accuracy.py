"""How the verdict of the accuracy contract looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import bytes_text, percent_text, print_table

if TYPE_CHECKING:
    from edgeopt.accuracy.report import AccuracyReport

_COLUMNS = ("moves", "drop", "integer", "size", "median here", "")


def show_accuracy(target: str, report: AccuracyReport) -> None:
    """Print what int8 costs, what was moved, and every plan that no other one beats."""
    from edgeopt.accuracy.report import interval_text, shown

    found = report.measured
    figures = f"{shown(found.float_figure, found.unit)} -> {shown(found.figure, found.unit)}"
    drop = f"a drop of {shown(found.drop, found.unit)}, limit {shown(report.max_drop, found.unit)}"
    click.echo(f"\naccuracy of {target}: {'held' if report.passed else 'not held'}")
    click.echo(f"  {found.metric} of {found.output}, {found.num_samples} samples: {figures}, {drop}")
    click.echo(f"  {interval_text(found)}")
    if found.is_proxy:
        click.echo("  a proxy: there are no labels, and the float network's own answers stand in for them")
    other = "" if found.disagreement is None else f"another class on {percent_text(found.disagreement)}, "
    click.echo(f"  against the float network: {other}{found.mean_sqnr_db:.1f} dB on average")
    if report.nodes:
        click.echo("  moved, to keep in the recipe:\n    [quantize.nodes]")
        for name, precision in sorted(report.nodes.items()):
            click.echo(f'    "{name}" = "{precision}"')
    if report.trials:
        _show_frontier(report)


def _show_frontier(report: AccuracyReport) -> None:
    from edgeopt.accuracy.report import shown
    from edgeopt.accuracy.search import frontier

    unit = report.measured.unit
    click.echo(f"  accuracy against size and speed, of {len(report.trials)} plans tried:")
    rows = (
        (
            str(trial.num_moves),
            shown(trial.drop or 0.0, unit),
            percent_text(trial.integer_coverage),
            bytes_text(trial.size_bytes),
            f"{trial.median_ms:.3g} ms",
            "holds" if trial.holds else "",
        )
        for trial in frontier(report.trials)
    )
    print_table(_COLUMNS, rows)
