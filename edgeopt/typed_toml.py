"""TOML tables into frozen dataclasses, strictly: the dataclass is the schema, its field names are the keys.

An unknown key, a missing one and a value of another type are refused with the file, the section and the key in front:

    my.toml: [compress.prune] unknown key 'prunning_ratio'
      hint: did you mean 'pruning_ratio'?
    my.toml: [compress.prune] pruning_ratio: expected a number, got the string "half"

Nothing is converted silently except an integer where a number is asked for. NaN and infinity are refused: they have
no place in JSON, and every comparison with NaN is false, so it would pass any limit.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeopt.errors import EdgeoptError, RecipeError, did_you_mean

Keys = tuple[str | int, ...]
Settings = TypeVar("Settings")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALARS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def read_toml(path: Path, *, source: str, error: type[EdgeoptError] = RecipeError) -> dict[str, Any]:
    """Return the tables of a TOML file; ``source`` is what messages call it.

    Raises:
        EdgeoptError: of class ``error``, for a file that cannot be read, is not UTF-8 or is not TOML (with the line).
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as problem:
        raise error(f"{source}: cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{source}: not a text file in UTF-8: byte {problem.start} is {problem.reason}") from problem
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{source}: not valid TOML: {problem}") from problem


def dotted(keys: Keys) -> str:
    """Return keys as TOML writes them: ``model.inputs."a b".shape[1]``."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False))
    return text


def describe(value: object) -> str:
    """Return a value as a message names it: ``the string "half"``, ``the integer 3``, ``a section``."""
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the {'integer' if isinstance(value, int) else 'number'} {value}"
    if isinstance(value, str):
        return f"the string {json.dumps(value, ensure_ascii=False)}"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, (list, tuple)):
        return "an array"
    return f"{type(value).__name__} {value}"


@dataclass(frozen=True)
class Decoder:
    """Turns one file's tables into settings and says where in the file a value stands that does not fit.

    ``folder`` is what relative paths start from; ``overridden`` names the keys that did not come from the file.
    """

    source: str
    folder: Path
    error: type[EdgeoptError] = RecipeError
    overridden: Collection[Keys] = ()

    def settings(self, schema: type[Settings], table: object, at: Keys = ()) -> Settings:
        """Return ``table`` as an instance of the dataclass ``schema``.

        Raises:
            EdgeoptError: of class ``error``, also in place of one that ``schema.__post_init__`` raises.
        """
        table = self._table(table, at)
        hints = get_type_hints(schema)
        self._check_keys(schema, hints, table, at)
        values = {key: self.value(hints[key], value, (*at, key)) for key, value in table.items()}
        try:
            return schema(**values)
        except EdgeoptError as problem:
            raise self.error(self._section(at) + problem.message, hint=problem.hint) from problem

    def value(self, expected: Any, value: object, at: Keys) -> Any:
        """Return ``value`` as the annotation ``expected`` wants it, or refuse it."""
        origin = get_origin(expected)
        if origin in (Union, types.UnionType):
            choices = [choice for choice in get_args(expected) if choice is not type(None)]
            if value is None and len(choices) < len(get_args(expected)):
                return None
            return self.value(choices[0] if len(choices) == 1 else self._method(choices, value, at), value, at)
        if origin is Literal:
            return self._choice(get_args(expected), value, at)
        if origin is tuple:
            return self._array(get_args(expected), value, at)
        if origin is not None and issubclass(origin, Mapping):
            inner = get_args(expected)[1]
            return {key: self.value(inner, item, (*at, key)) for key, item in self._table(value, at).items()}
        if is_dataclass(expected):
            return self.settings(expected, value, at)  # type: ignore[arg-type]
        if expected is Path:
            return self.folder / self._scalar(str, str(value) if isinstance(value, Path) else value, at)
        return self._anything(value, at) if expected is object else self._scalar(expected, value, at)

    def refuse(self, at: Keys, text: str, *, hint: str | None = None) -> NoReturn:
        """Raise about the value at ``at``, with the file, section and key in front."""
        split = len(at) - 1
        while split > 0 and isinstance(at[split], int):
            split -= 1
        raise self.error(f"{self._section(at[:split])}{dotted(at[split:])}: {text}{self._origin(at)}", hint=hint)

    def _section(self, at: Keys) -> str:
        return f"{self.source}: [{dotted(at)}] " if at else f"{self.source}: "

    def _origin(self, at: Keys) -> str:
        known = any(at[: len(keys)] == keys for keys in self.overridden)
        return " (an override, not in the file)" if known else ""

    def _check_keys(self, schema: Any, hints: Mapping[str, Any], table: Mapping[str, object], at: Keys) -> None:
        known = {item.name: item for item in fields(schema)}
        for key in table:
            if key not in known:
                text = f"{self._section(at)}unknown key {key!r}{self._origin((*at, key))}"
                raise self.error(text, hint=did_you_mean(key, list(known)))
        for key, item in known.items():
            if key not in table and item.default is MISSING and item.default_factory is MISSING:
                missing = f"section [{dotted((*at, key))}]" if is_dataclass(hints[key]) else f"key {key!r}"
                raise self.error(f"{self._section(at)}missing {missing}")

    def _table(self, value: object, at: Keys) -> Mapping[str, object]:
        if not isinstance(value, Mapping):
            self.refuse(at, f"expected a section, got {describe(value)}")
        return value

    def _array(self, items: tuple[Any, ...], value: object, at: Keys) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            self.refuse(at, f"expected an array, got {describe(value)}")
        if items[-1] is Ellipsis:
            items = (items[0],) * len(value)
        if len(items) != len(value):
            self.refuse(at, f"expected {len(items)} items, got {len(value)}")
        return tuple(
            self.value(item, part, (*at, index)) for index, (item, part) in enumerate(zip(items, value, strict=True))
        )

    def _method(self, schemas: list[Any], value: object, at: Keys) -> Any:
        """Return the one of several dataclasses whose ``method`` the table names."""
        named = {schema.method: schema for schema in schemas}
        method = self._table(value, at).get("method")
        if method not in named:
            known = ", ".join(map(repr, sorted(named)))
            hint = did_you_mean(method, list(named)) if isinstance(method, str) else None
            self.refuse((*at, "method"), f"expected one of {known}, got {describe(method)}", hint=hint)
        return named[method]

    def _choice(self, choices: tuple[Any, ...], value: object, at: Keys) -> object:
        # The type is compared too: True == 1, and Literal[1] does not mean true.
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            listed = ", ".join(repr(choice) for choice in choices)
            self.refuse(at, f"expected one of {listed}, got {describe(value)}")
        return value

    def _scalar(self, expected: type, value: object, at: Keys) -> Any:
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            self.refuse(at, f"expected {_SCALARS[expected]}, got {describe(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            self.refuse(at, f"expected a finite number, got {value}")
        return value

    def _anything(self, value: object, at: Keys) -> object:
        """Return a value that is handed on unread; only what JSON can hold, since every recipe is written out."""
        if isinstance(value, Mapping):
            return {key: self._anything(item, (*at, key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._anything(item, (*at, index)) for index, item in enumerate(value)]
        if type(value) not in _SCALARS:
            self.refuse(at, f"expected a string, number, boolean, array or section, got {describe(value)}")
        return self._scalar(type(value), value, at)
