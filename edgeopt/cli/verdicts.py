"""Verdicts of several devices: had side by side, shown, and turned into one exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.console import percent_text, print_table
from edgeopt.cli.report import OUTPUT_COLUMNS, output_cells

if TYPE_CHECKING:
    from edgeopt.errors import EdgeoptError
    from edgeopt.verdict import ParityReport

    Verdicts = Mapping[str, ParityReport | EdgeoptError]


def verify_on(bundle: Path, devices: Sequence[str], **asked: Any) -> Verdicts:
    """Verify on all devices side by side; what goes wrong on one of several does not stop the others.

    ``asked`` are the keywords of :func:`edgeopt.verify`.
    """
    from edgeopt.errors import EdgeoptError
    from edgeopt.verdict import verify as verify_bundle

    def verdict_on(name: str) -> ParityReport | EdgeoptError:
        try:
            return verify_bundle(bundle, device=name, **asked)
        except EdgeoptError as error:
            return error

    names = list(dict.fromkeys(devices))
    if len(names) == 1:
        return {names[0]: verdict_on(names[0])}
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        waiting = {name: pool.submit(copy_context().run, verdict_on, name) for name in names}
        return {name: future.result() for name, future in waiting.items()}


def verdicts_json(verdicts: Verdicts) -> dict[str, object]:
    """Return one report as it is, and several under their devices' names."""
    from edgeopt.errors import EdgeoptError

    found = {
        name: {"passed": False, "error": verdict.message, "exit_code": verdict.exit_code}
        if isinstance(verdict, EdgeoptError)
        else verdict.to_json()
        for name, verdict in verdicts.items()
    }
    if len(found) == 1:
        return next(iter(found.values()))
    return {"passed": all(item["passed"] for item in found.values()), "devices": found}


def show_verdicts(verdicts: Verdicts) -> None:
    """Print a table for each device."""
    for name, verdict in verdicts.items():
        if len(verdicts) > 1:
            click.echo(f"{name}:")
        _show(name, verdict, many=len(verdicts) > 1)


def raise_worst(bundle: Path, verdicts: Verdicts) -> None:
    """Raise a verdict of no before a verdict that could not be had; the first of each kind."""
    from edgeopt.errors import EdgeoptError, ParityError

    for verdict in verdicts.values():
        if not isinstance(verdict, EdgeoptError) and not verdict.passed:
            where = "" if verdict.device == "local" else f" on {verdict.device}"
            raise ParityError(f"{bundle} in {verdict.runtime}{where}: " + "; ".join(verdict.failures))
    for verdict in verdicts.values():
        if isinstance(verdict, EdgeoptError):
            raise verdict


def _show(name: str, verdict: ParityReport | EdgeoptError, *, many: bool) -> None:
    from edgeopt.errors import EdgeoptError

    if isinstance(verdict, EdgeoptError):
        if many:  # one alone is printed as the error that it is
            click.echo(f"no verdict: {verdict}\n")
        return
    rows = (output_cells(output, steps_judged=verdict.steps_judged) for output in verdict.outputs)
    print_table(OUTPUT_COLUMNS, rows)
    word = "passed" if verdict.passed else "failed"
    where = "" if name == "local" else f" on {name}"
    click.echo(f"\n{word} in {verdict.runtime}{where} on {verdict.num_samples} samples")
    click.echo(f"kernels: {verdict.kernels}" + (f"; CPU: {verdict.cpu}" if verdict.cpu else ""))
    click.echo(f"{percent_text(verdict.integer_coverage)} of the multiply-accumulates run on integers")
    if many:
        click.echo()
