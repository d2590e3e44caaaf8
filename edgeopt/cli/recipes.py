"""``edgeopt recipes``: the recipes that come with edgeopt."""

from __future__ import annotations

import click

from edgeopt.cli.console import print_table, write_json
from edgeopt.cli.options import json_option

_EXAMPLES = """\b
Examples:
  edgeopt recipes
  edgeopt build mobilenet_v2
  edgeopt recipes --json - | jq -r .mnist5k.path    the file, to copy from
"""


@click.command(epilog=_EXAMPLES)
@json_option
def recipes(json_to: str | None) -> None:
    """List the built-in recipes."""
    from edgeopt.recipe import builtin_recipes

    found = builtin_recipes()
    write_json(json_to, {recipe.name: {"title": recipe.title, "path": str(recipe.path)} for recipe in found})
    if json_to != "-":
        print_table(("recipe", "what it builds"), ((recipe.name, recipe.title) for recipe in found))
