"""``edgeopt init``: a recipe to start from."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.console import write_json
from edgeopt.cli.options import json_option

_EXAMPLES = """\b
Examples:
  edgeopt init && edgeopt build        a recipe that builds as it stands
  edgeopt init nets/gesture.toml
"""


@click.command(epilog=_EXAMPLES)
@click.argument("path", type=click.Path(path_type=Path), default=Path("edgeopt.toml"))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
def init(path: Path, force: bool, json_to: str | None) -> None:
    """Write a commented recipe to PATH, ./edgeopt.toml if left out."""
    from edgeopt.starter import write_starter

    write_starter(path, force=force)
    write_json(json_to, {"recipe": str(path)})
    if json_to != "-":
        build = "edgeopt build" if path == Path("edgeopt.toml") else f"edgeopt build {path}"
        click.echo(f"wrote {path}; build it with: {build}")
