"""Recipes: one TOML file says what is built, from which model and samples, within which limits.

The schema is :mod:`edgeopt.settings`. A recipe is found by the name of a built-in one or by its path; single values are
overridden by dotted keys, ``train.epochs``, which are TOML keys too: ``compress.prune.pruning_ratios."features.0"``,
where ``prune`` is the name of a step.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from edgeopt.errors import RecipeError, UsageError, did_you_mean
from edgeopt.settings import MEMORY_BUDGETS, ParityLimits, QuantizeSettings, Recipe, TargetOverrides
from edgeopt.steps import named_steps
from edgeopt.target import discover_targets
from edgeopt.typed_toml import Decoder, describe, read_toml

LOCAL_RECIPE = "edgeopt.toml"
BUILTIN_DEFAULT = "mnist5k"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BuiltinRecipe:
    """A recipe that comes with edgeopt; ``title`` is the first line of its file, a comment."""

    name: str
    title: str
    path: Path


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, the TOML file it was read from, and the folder that its relative paths start from."""

    recipe: Recipe
    folder: Path
    source: Path

    def resolved(self) -> dict[str, Any]:
        """Return the recipe with every default written out, ready for JSON.

        No absolute path is left in it, so that two machines write the same manifest: what was written relative to the
        recipe stays as it was written, of an absolute path only the last part stays.
        """
        resolved: dict[str, Any] = self._plain(self.recipe)
        for section, key in (("model", "factory"), ("model", "weights"), ("calibration", "dataset")):
            resolved[section][key] = self._without_root(resolved[section][key])
        resolved["calibration"]["options"] = self._without_root(resolved["calibration"]["options"])
        del resolved["search"]  # what a search looked for is no part of what it found
        # JSON's objects have no order that is kept, and the steps have one.
        resolved["compress"] = [{"name": name, **step} for name, step in resolved["compress"].items()]
        return resolved

    def _plain(self, value: Any) -> Any:
        if is_dataclass(value):
            return {item.name: self._plain(getattr(value, item.name)) for item in fields(value)}
        if isinstance(value, Mapping):
            return {key: self._plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        return self._without_root(str(value)) if isinstance(value, Path) else value

    def _without_root(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._without_root(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._without_root(item) for item in value]
        if not isinstance(value, str) or not PurePath(value).is_absolute():
            return value
        path = PurePath(value)
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else path.name


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> LoadedRecipe:
    """Read a recipe strictly, by a built-in name or a path, and replace single values by dotted key.

    A recipe that does not say its ``name`` has the name of its file.

    Raises:
        RecipeError: an unknown recipe, key or section; a value of the wrong type or one that makes no sense.
    """
    path = find_recipe(name_or_path)
    folder = path.absolute().parent
    decoder = Decoder(_called(name_or_path, path), folder, overridden=[_parts(key) for key in overrides or {}])
    recipe = decoder.settings(Recipe, recipe_table(name_or_path, overrides))
    _check_name(recipe, decoder)
    known = discover_targets() if recipe.targets else {}
    for target, different in recipe.targets.items():
        if target not in known:
            decoder.refuse(("targets", target), "there is no such target", hint=did_you_mean(target, list(known)))
        for name in MEMORY_BUDGETS:
            if getattr(different, name) is not None and not known[target].microcontroller:
                decoder.refuse(("targets", target, name), "only microcontrollers have a budget for memory")
        _settings_for(recipe, target, decoder)
    return LoadedRecipe(recipe, folder, path.absolute())


def recipe_table(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return what a recipe's file says, with values replaced; ``compress`` has the steps by name.

    Raises:
        RecipeError: an unknown recipe, a file that is not TOML, or a step without a method.
    """
    path = find_recipe(name_or_path)
    called = _called(name_or_path, path)
    table = {"name": path.stem, **read_toml(path, source=called)}
    table["compress"] = _steps(table.get("compress", []), called)
    for key, value in (overrides or {}).items():
        _override(table, key, value)
    table["compress"] = _overridden_steps(table["compress"], called)
    return table


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the TOML file of a built-in recipe or the file at a path.

    Raises:
        RecipeError: neither a built-in recipe nor a file has this name.
    """
    text = str(name_or_path)
    path = Path(text)
    builtin = {recipe.name: recipe.path for recipe in builtin_recipes()}
    if text in builtin:
        return builtin[text]
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{text}: is a folder, expected a TOML file or the name of a built-in recipe")
    if path.suffix == ".toml" or len(path.parts) > 1:
        beside = sorted(item.name for item in path.parent.glob("*.toml"))
        raise RecipeError(
            f"{text}: no such file",
            hint=did_you_mean(path.name, beside) or "edgeopt init writes a recipe to start from",
        )
    raise RecipeError(f"no recipe is called {text!r}", hint=did_you_mean(text, list(builtin)))


def default_recipe() -> str | Path:
    """Return what is built when no recipe is named: ``edgeopt.toml`` in this folder, else the built-in default."""
    local = Path(LOCAL_RECIPE)
    return local if local.is_file() else BUILTIN_DEFAULT


def builtin_recipes() -> tuple[BuiltinRecipe, ...]:
    """Return the recipes that come with edgeopt, by name."""
    folder = Path(str(files("edgeopt"))) / "recipes"
    return tuple(BuiltinRecipe(path.stem, _title(path), path) for path in sorted(folder.glob("*.toml")))


def settings_for(recipe: Recipe, target: str) -> tuple[QuantizeSettings, ParityLimits, TargetOverrides]:
    """Return what holds for one target: ``[quantize]`` and ``[parity]`` with ``[targets.NAME]`` on top.

    Raises:
        RecipeError: ``[targets.NAME]`` has an unknown key or a value of the wrong type.
    """
    return _settings_for(recipe, target, Decoder(recipe.name, Path()))


def parse_override(text: str) -> tuple[str, object]:
    """Return the key and the value of ``key=value``; the value is read as TOML, and as a bare string if it is none.

    Raises:
        UsageError: there is no ``=`` or nothing before it.
    """
    key, equals, written = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"expected key=value, got {text!r}", hint="--set train.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return key.strip(), written.strip()
    return key.strip(), parsed["value"] if list(parsed) == ["value"] else written.strip()


def _settings_for(
    recipe: Recipe, target: str, decoder: Decoder
) -> tuple[QuantizeSettings, ParityLimits, TargetOverrides]:
    own = recipe.targets.get(target, TargetOverrides())
    quantize = {**vars(recipe.quantize), **own.quantize}
    parity = {**vars(recipe.parity), **own.parity}
    return (
        decoder.settings(QuantizeSettings, quantize, ("targets", target, "quantize")),
        decoder.settings(ParityLimits, parity, ("targets", target, "parity")),
        own,
    )


def _steps(tables: object, called: str) -> dict[str, Any]:
    """Return the tables of ``[[compress]]`` by name, so that overrides and messages can name a step."""
    if not isinstance(tables, list):
        raise RecipeError(f"{called}: compress: expected an array of steps, [[compress]], got {describe(tables)}")
    try:
        return named_steps(tables)
    except RecipeError as problem:
        raise RecipeError(f"{called}: {problem.message}", hint=problem.hint) from problem


def _overridden_steps(steps: object, called: str) -> dict[str, Any]:
    """Return the steps after overrides, which may take one out with None, or add one that is called as its method."""
    named = steps if isinstance(steps, dict) else _steps(steps, called)
    return {
        name: {"method": name, **step} if isinstance(step, dict) else step
        for name, step in named.items()
        if step is not None
    }


def _check_name(recipe: Recipe, decoder: Decoder) -> None:
    """Refuse a name that cannot be the name of a folder: bundles are written to ``OUT/name/target``."""
    if not _NAME.fullmatch(recipe.name):
        text = f"expected letters, digits, '.', '_' and '-' only, got {describe(recipe.name)}"
        decoder.refuse(("name",), text, hint="without name = '...' a recipe has the name of its file")


def _called(name_or_path: str | Path, path: Path) -> str:
    """Return what messages call a recipe: the path as it was given, or the file name of a built-in one."""
    return path.name if str(name_or_path) == path.stem else str(name_or_path)


def _title(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def _override(table: dict[str, Any], key: str, value: object) -> None:
    """Put ``value`` into ``table`` at a dotted key, making the sections on the way."""
    parts = _parts(key)
    for depth, part in enumerate(parts[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"override {key!r}: {'.'.join(parts[:depth])!r} is a value, not a section")
    table[parts[-1]] = value


def _parts(key: str) -> tuple[str, ...]:
    """Return the parts of a dotted TOML key, quotes removed."""
    try:
        node: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"override {key!r}: not a dotted key such as 'train.epochs'") from error
    parts = []
    while isinstance(node, dict) and len(node) == 1:
        ((part, node),) = node.items()
        parts.append(part)
    if node != 0:
        raise RecipeError(f"override {key!r}: not a single key")
    return tuple(parts)
