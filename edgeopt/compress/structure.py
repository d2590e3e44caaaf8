"""The structure of a network beyond its factory, as JSON that is never a pickle.

factory      "file.py:function" where a step replaced the recipe's network; else nothing
edits        what was done to its layers, in order: ``{"kind": "remove_channels", ...}``; each kind is applied by the
module of its method (:mod:`edgeopt.compress.rebuild`)
constraints  what later training must keep, by the name of a weight: ``{"kind": "sparse"}``; the values are in the
weights themselves (:mod:`edgeopt.compress.constraints`)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeopt.artifacts import canonical_json
from edgeopt.errors import CompressionError

_SCHEMA_VERSION = 2

Edit = dict[str, Any]
Constraint = dict[str, Any]

# The kinds of constraints whose weights are whole numbers of a few bits, with a scale for each output channel.
LOW_BIT_KINDS = ("int4", "block_int4", "ternary", "binary")


@dataclass(frozen=True)
class Structure:
    """What :class:`edgeopt.artifacts.TorchModel` ``.structure`` holds."""

    factory: Mapping[str, Any] | None = None
    edits: tuple[Edit, ...] = ()
    constraints: Mapping[str, Constraint] = field(default_factory=dict)

    def edited(self, edit: Edit) -> Structure:
        """Return the structure after one more edit."""
        return replace(self, edits=(*self.edits, edit))

    def constrained(self, constraints: Mapping[str, Constraint]) -> Structure:
        """Return the structure with more constraints; a weight that has one already gets the new one.

        The pattern of its zeros stays: whatever may follow on zeros keeps them.
        """
        merged = {name: {**_pattern(self.constraints.get(name, {})), **new} for name, new in constraints.items()}
        return replace(self, constraints={**self.constraints, **merged})

    def write(self, path: Path) -> None:
        """Write it as JSON, through a temporary name."""
        content = {
            "schema_version": _SCHEMA_VERSION,
            "factory": self.factory,
            "edits": list(self.edits),
            "constraints": dict(self.constraints),
        }
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(canonical_json(content), encoding="utf-8")
        os.replace(temporary, path)


def _pattern(constraint: Constraint) -> Constraint:
    return {key: constraint[key] for key in ("pattern",) if key in constraint}


def read_structure(path: Path | None) -> Structure:
    """Read what :meth:`Structure.write` wrote; without a path, the structure is that of the factory.

    Raises:
        CompressionError: the file is damaged or of another schema version.
    """
    if path is None:
        return Structure()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"schema_version is {content['schema_version']}, expected {_SCHEMA_VERSION}")
        edits = tuple(dict(edit) for edit in content["edits"])
        if not all(isinstance(edit.get("kind"), str) for edit in edits):
            raise ValueError("an edit has no kind")
        constraints = {str(name): dict(constraint) for name, constraint in content["constraints"].items()}
        factory = None if content["factory"] is None else dict(content["factory"])
        return Structure(factory, edits, constraints)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompressionError(f"{path.name} does not hold a network's structure: {error!r}") from error
