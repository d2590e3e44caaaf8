"""Dependency files for Make and Ninja: which inputs, when changed, make an output out of date.

Both read the syntax that ``gcc -MMD -MP`` writes, and escapes follow gcc (libcpp/mkdeps.cc, ``munge``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeopt.errors import UsageError


def depfile(outputs: Sequence[Path], inputs: Iterable[Path]) -> str:
    """Return the text of a dependency file; paths below the working directory are written relative to it.

    That is how Ninja and Make name them in the rules themselves. Every input also gets an empty rule of its own, so
    that Make goes on when an input was deleted, as with ``gcc -MP``.

    Raises:
        UsageError: a path has a line break in it, which neither program can read.
    """
    left = " ".join(_escaped(path) for path in outputs)
    right = sorted({_escaped(path) for path in inputs})
    rule = " \\\n  ".join([f"{left}:", *right])
    return "\n\n".join([rule, *(f"{path}:" for path in right)]) + "\n"


def _escaped(path: Path) -> str:
    text = os.path.abspath(path)
    inside = os.path.relpath(text)
    text = text if inside.startswith("..") else inside
    if "\n" in text:
        raise UsageError(f"{text!r}: a path with a line break has no place in a dependency file")
    # A backslash is an ordinary character, except before a space: there each one is doubled.
    text = re.sub(r"(\\*)([ \t])", r"\1\1\\\2", text)
    return text.replace("$", "$$").replace("#", r"\#").replace(":", r"\:")
