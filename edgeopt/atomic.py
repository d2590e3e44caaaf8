"""Files that are either the old one or the whole new one, never half of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from edgeopt.errors import StorageError


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name beside it and rename it; missing folders are made.

    A symbolic link stays one, and what is no regular file (``/dev/null``, a pipe) is written to, not replaced.

    Raises:
        StorageError: the file cannot be written; the old one, if any, is untouched.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
