"""``edgeopt doctor``: what this machine can build and verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import print_table, write_json
from edgeopt.cli.options import json_option

if TYPE_CHECKING:
    from edgeopt.doctor import Diagnosis

_EXAMPLES = """\b
Examples:
  edgeopt doctor
  edgeopt doctor --json doctor.json    to attach to a bug report
"""


@click.command(epilog=_EXAMPLES)
@json_option
def doctor(json_to: str | None) -> None:
    """Show versions and runtimes, and what can be verified here."""
    from edgeopt.doctor import examine

    diagnosis = examine()
    write_json(json_to, diagnosis.to_json())
    if json_to != "-":
        _show(diagnosis)


def _show(diagnosis: Diagnosis) -> None:
    machine = diagnosis.machine
    click.echo(f"Python {machine.python} on {machine.system} {machine.architecture}, {machine.num_cpus} CPUs")
    click.echo(f"CPU features: {', '.join(machine.cpu_features) or 'none of those that matter'}\n")
    packages = ((item.name, item.version or "missing", item.purpose) for item in diagnosis.packages)
    print_table(("package", "version", "for"), packages)
    click.echo()
    runtimes = ((item.name, "yes" if item.found else "no", item.detail) for item in diagnosis.runtimes)
    print_table(("runtime", "found", "detail"), runtimes)
    click.echo()
    checks = ((item.target, "yes" if item.possible else "no", item.what, item.why) for item in diagnosis.checks)
    print_table(("target", "here", "what can be verified", "why"), checks)
    for target, note in diagnosis.notes.items():
        click.echo(f"\n{target}: {note}")
