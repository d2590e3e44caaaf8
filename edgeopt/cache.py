"""Results of stages on disk, found by the hash of everything that made them.

A result is a folder that appears under its final name in one step, with ``entry.json`` listing the SHA-256 of every
file. A damaged one is noticed by these hashes and made again. A lock file lets a second build that wants the same
result wait for the first instead of doing the work twice; the kernel drops the lock of a process that is killed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeopt.artifacts import canonical_json, digest_of, sha256_file
from edgeopt.atomic import locked, replace_folder
from edgeopt.stage import logger

_ENTRY = "entry.json"


@dataclass(frozen=True)
class CacheEntry:
    """A finished result; ``hit`` says that it was there before."""

    folder: Path
    hit: bool

    def digest(self) -> str:
        """Return one hash of what the result's files hold, for the key of the next stage."""
        return sha256_file(self.folder / _ENTRY)


@dataclass(frozen=True)
class Cache:
    """A folder of results; with ``force`` each is made anew once, as if it were not there."""

    root: Path
    force: bool = False

    def entry(
        self, name: str, key: Iterable[str], make: Callable[[Path], None], *, resumable: bool = False
    ) -> CacheEntry:
        """Return the result of a stage, made now by ``make(folder)`` if it is not there or damaged.

        Args:
            name: of the stage, for people who look into the folder.
            key: everything that the result depends on.
            make: writes the result's files into an empty folder.
            resumable: ``make`` can go on from what a killed run left in its folder; else that is thrown away.
        """
        folder = self.root / f"{name}-{digest_of(key)[:20]}"
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            if folder.exists() and not self.force:
                if is_intact(folder):
                    return CacheEntry(folder, hit=True)
                logger.warning("%s is damaged and is built again", folder.name)
            work = folder.with_name(f".{folder.name}.work")
            if not resumable or self.force or not work.is_dir():
                _remove(work)
            work.mkdir(exist_ok=True)
            try:
                make(work)
                _seal(work)
            except BaseException:
                if not resumable:  # a disk that is full needs the room
                    shutil.rmtree(work, ignore_errors=True)
                raise
            if not folder.is_dir():
                _remove(folder)
            replace_folder(work, folder)
        return CacheEntry(folder, hit=False)


def is_intact(folder: Path) -> bool:
    """Return whether every file of a result is what it was when the result was made."""
    try:
        listed = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))["files"]
        return bool(listed) and all(sha256_file(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _remove(path: Path) -> None:
    """Remove a folder, or whatever else stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _ENTRY)
    listed = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    (folder / _ENTRY).write_text(canonical_json({"files": listed}), encoding="utf-8")
