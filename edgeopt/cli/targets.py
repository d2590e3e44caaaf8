"""``edgeopt targets``: what can be built for."""

from __future__ import annotations

import click

from edgeopt.cli.console import print_table, write_json
from edgeopt.cli.options import json_option

_EXAMPLES = """\b
Examples:
  edgeopt targets
  edgeopt targets --json - | jq keys
"""

_FACTS = (
    "title", "scheme", "runtime", "runtime_package", "model_file", "model_format", "round_to", "image_layout",
    "device_note",
)  # fmt: skip


@click.command(epilog=_EXAMPLES)
@json_option
def targets(json_to: str | None) -> None:
    """List the targets that can be built for."""
    from edgeopt.target import discover_targets

    found = discover_targets()
    write_json(json_to, {name: {fact: getattr(spec, fact) for fact in _FACTS} for name, spec in found.items()})
    if json_to != "-":
        rows = ((name, spec.title, spec.scheme, spec.runtime, spec.model_file) for name, spec in found.items())
        print_table(("target", "title", "scheme", "runtime", "model"), rows)
