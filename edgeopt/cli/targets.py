"""``edgeopt targets``: what can be built for."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgeopt.cli.console import print_table, write_json
from edgeopt.cli.options import json_option

_EXAMPLES = """\b
Examples:
  edgeopt targets
  edgeopt targets --json - | jq keys
"""


@click.command(epilog=_EXAMPLES)
@json_option
def targets(json_to: str | None) -> None:
    """List the targets that can be built for."""
    from edgeopt.target import discover_targets

    found = discover_targets()
    write_json(json_to, {name: {**asdict(spec), "folder": str(spec.folder)} for name, spec in found.items()})
    if json_to != "-":
        rows = ((name, spec.title, spec.scheme, spec.runtime, spec.model_file) for name, spec in found.items())
        print_table(("target", "title", "scheme", "runtime", "model"), rows)
