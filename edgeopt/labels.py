"""The names of the classes that an output tells apart, as a recipe gives them: a list, or a file with one a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeopt.artifacts import TensorInfo
from edgeopt.errors import RecipeError, did_you_mean
from edgeopt.settings import LabelSettings


def labels_of(settings: Mapping[str, LabelSettings], outputs: Sequence[TensorInfo]) -> dict[str, list[str]]:
    """Return the names by output, in the order of the classes.

    Raises:
        RecipeError: there is no such output, it has another number of classes, or the file cannot be read.
    """
    found = {}
    shapes = {output.name: output.shape for output in outputs}
    for name, given in settings.items():
        if name not in shapes:
            raise RecipeError(f"[labels.{name}]: there is no such output", hint=did_you_mean(name, list(shapes)))
        names = list(given.names) if given.file is None else _lines(given.file, name)
        if len(names) not in shapes[name][1:]:
            raise RecipeError(f"[labels.{name}]: {len(names)} names, and the output has the shape {list(shapes[name])}")
        found[name] = names
    return found


def _lines(path: Path, name: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"[labels.{name}] file: {path} cannot be read: {error}") from error
