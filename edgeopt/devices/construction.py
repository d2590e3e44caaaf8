"""Folders in the user's cache that hold what emulated devices need: whole or not there, and quick to take up again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.atomic import replace_folder
from edgeopt.devices.debian import PrivateApt


def home_of(kind: str) -> Path:
    """Return where a kind of device has its folder: below ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt" / kind


@contextmanager
def under_construction(home: Path) -> Iterator[tuple[Path, PrivateApt]]:
    """Yield an empty folder, which takes the place of ``home`` if the block ends well, and an apt to fill it.

    If it does not end well, ``home`` stays as it was, and the packages are kept for the next try. The caller holds a
    lock on ``home``.
    """
    new, fetched = home.with_name(f".{home.name}.new"), home.with_name(f".{home.name}.apt")
    shutil.rmtree(new, ignore_errors=True)  # of a try that was killed
    try:
        new.mkdir(parents=True)
        yield new, PrivateApt(fetched, ["arm64"])
        replace_folder(new, home)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(fetched)
