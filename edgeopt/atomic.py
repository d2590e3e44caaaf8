"""Files and folders that are either the old one or the whole new one, never half of it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeopt.errors import StorageError
from edgeopt.stage import logger

_AT_FDCWD = -100  # paths are relative to the working directory
_RENAME_EXCHANGE = 2


def write_text(path: Path, text: str) -> None:
    """Write a file of text as :func:`write_bytes` does, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it and rename it; missing folders are made.

    A symbolic link stays one, and what is no regular file (``/dev/null``, a pipe) is written to, not replaced.

    Raises:
        StorageError: the file cannot be written; the old one, if any, is untouched.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; wait for another process that holds it. The kernel drops the lock of one that is killed."""
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another build is making %s; waiting for it", path.name.strip(".").removesuffix(".lock"))
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder ``new`` in the place of ``target``, which may be there; ``new`` is gone afterwards.

    Where the system can exchange two names in one step (Linux), no moment is without a ``target``.
    """
    try:
        new.rename(target)
        return
    except OSError:
        if not target.exists():
            raise
    if not _exchange(new, target):
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(old)
        new.rename(target)
        old.rename(new)
    shutil.rmtree(new)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names by ``renameat2(RENAME_EXCHANGE)``; return whether the system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
