"""A recipe to start from: commented, and it builds as it stands."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from edgeopt.atomic import write_text
from edgeopt.errors import UsageError


def write_starter(path: Path, *, force: bool = False) -> None:
    """Write the recipe ``starter.toml`` to ``path``.

    Raises:
        UsageError: a file is there already and ``force`` is not set.
        StorageError: the file cannot be written.
    """
    if path.exists() and not force:
        raise UsageError(f"{path}: is there already", hint="--force replaces it, or name another file")
    write_text(path, (files("edgeopt") / "starter.toml").read_text(encoding="utf-8"))
