"""Another network than the recipe's: the one that ``transfer`` goes on with, or one that teaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class NetworkSettings:
    """A network by the same words as ``[model]``: ``factory`` left out is the recipe's own.

    ``arguments`` go to the factory, ``structure`` is the ``structure.json`` of an earlier build, and ``weights`` are a
    state dict that fits the result.
    """

    factory: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    structure: Path | None = None
    weights: str | None = None
