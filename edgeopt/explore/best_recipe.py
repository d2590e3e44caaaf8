"""Writes a point of a search as a recipe of its own, which builds what the trial built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.atomic import write_text
from edgeopt.errors import UsageError
from edgeopt.explore.plan import SearchPlan
from edgeopt.recipe import builtin_recipes, find_recipe, recipe_table
from edgeopt.typed_toml import Keys, dotted

if TYPE_CHECKING:
    from edgeopt.explore.search import SearchTrial


def refuse_place(recipe: str | Path, path: Path) -> None:
    """Refuse the recipe itself, and another folder than that of a recipe whose relative paths start there.

    Raises:
        UsageError: ``path`` is the recipe, or in another folder.
    """
    source = find_recipe(recipe).absolute()
    if path.resolve() == source.resolve():
        raise UsageError(f"{path} is the recipe that is searched, and would be overwritten", hint="give another name")
    is_builtin = any(item.path == find_recipe(recipe) for item in builtin_recipes())
    if not is_builtin and path.absolute().parent != source.parent:
        raise UsageError(
            f"{path}: the paths in {source.name} start at its own folder",
            hint=f"write it beside, {source.with_name(path.name)}",
        )


def write_recipe(trial: SearchTrial, plan: SearchPlan, path: Path) -> None:
    """Write the recipe of a plan with a trial's values in it; comments are not kept."""
    table = recipe_table(plan.recipe, {**plan.base, **trial.point})
    steps = [{"name": name, **step} for name, step in table.pop("compress").items()]
    table |= {"name": path.stem, **({"compress": steps} if steps else {})}
    table.pop("search", None)
    figures = ", ".join(f"{name} {trial.figures[name]:g}" for name in plan.figures)
    title = f"# {find_recipe(plan.recipe).stem} as a search found it: {figures} for {plan.target}."
    write_text(path, "\n".join([title, "", *_lines(table, ())]) + "\n")


def _lines(table: Mapping[str, Any], at: Keys) -> Iterator[str]:
    """Yield a table in TOML: its own values first, then the tables in it."""
    inner = {key: value for key, value in table.items() if _is_section(value)}
    for key, value in table.items():
        if key not in inner:
            yield f"{dotted((key,))} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in inner.items():
        name = dotted((*at, key))
        for item in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            yield from _lines(item, (*at, key))


def _is_section(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))
