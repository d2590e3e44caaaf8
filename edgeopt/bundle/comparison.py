"""What differs between two bundles: facts by name, files by hash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# These follow from everything else.
_DERIVED = ("digest",)


@dataclass(frozen=True)
class Difference:
    """One fact of ``bundle.json`` by its path, such as ``outputs.logits.scale``; ``None`` is for one that is absent."""

    fact: str
    first: Any
    second: Any

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return asdict(self)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Return every fact in which two manifests differ, in the order of their names; files by their hashes."""
    one, other = (
        dict(_facts("", {k: v for k, v in manifest.items() if k not in _DERIVED})) for manifest in (first, second)
    )
    return [
        Difference(fact, one.get(fact), other.get(fact))
        for fact in sorted(one.keys() | other.keys())
        if one.get(fact) != other.get(fact)
    ]


def _facts(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree of mappings and lists; what has a name is called by it."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _facts(f"{prefix}.{key}" if prefix else str(key), item)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            name = item.get("name", index) if isinstance(item, Mapping) else index
            yield from _facts(f"{prefix}.{name}", item)
    else:
        yield prefix, value
