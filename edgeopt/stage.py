"""What a stage runs inside: it is timed, logged, shows progress, and its name is stamped on its errors.

A stage calls :func:`track` for long loops and ``logger`` for single lines; where they go is for the caller to say:
the command line draws bars on a terminal, a library user gets ``logging`` records and nothing else.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

from edgeopt.errors import EdgeoptError, StorageError

logger = logging.getLogger("edgeopt")

Item = TypeVar("Item")

_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EEXIST,  # a file where a folder is to be
}  # fmt: skip


class Reporter(Protocol):
    """Where progress goes."""

    def started(self, stage: str) -> None:
        """Say that a stage begins."""

    def finished(self, stage: str, seconds: float) -> None:
        """Say that a stage ended well."""

    def progress(self, description: str, done: int, total: int, note: str = "") -> None:
        """Say how far a loop of ``total`` steps has come; ``note`` is what it has found so far."""


class LoggingReporter:
    """Sends stage boundaries to ``logging`` and keeps quiet about single steps."""

    def started(self, stage: str) -> None:
        """Log the start."""
        logger.debug("%s ...", stage)

    def finished(self, stage: str, seconds: float) -> None:
        """Log the end and how long it took."""
        logger.info("%s done in %.1f s", stage, seconds)

    def progress(self, description: str, done: int, total: int, note: str = "") -> None:
        """Say nothing: a record for every step would drown the rest."""


class InnerReporter:
    """Says nothing of stages inside a stage, and passes on how far their loops have come."""

    def __init__(self, outer: Reporter) -> None:
        self._outer = outer

    def started(self, stage: str) -> None:
        """Say nothing."""

    def finished(self, stage: str, seconds: float) -> None:
        """Say nothing."""

    def progress(self, description: str, done: int, total: int, note: str = "") -> None:
        """Pass it on."""
        self._outer.progress(description, done, total, note)


_reporter: ContextVar[Reporter | None] = ContextVar("edgeopt_reporter", default=None)


@contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Send the progress of everything inside the block to ``reporter``."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def inner_stages() -> Iterator[None]:
    """Report what happens inside the block as a part of the stage around it."""
    with reporting_to(InnerReporter(_current())):
        yield


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time and log a stage, and stamp its name on whatever error leaves it.

    Raises:
        StorageError: in place of an ``OSError`` that says that the disk is full, read-only or not permitted.
    """
    reporter = _current()
    reporter.started(name)
    start = time.monotonic()
    try:
        yield
    except EdgeoptError as error:
        error.stage = error.stage or name
        raise
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        storage = StorageError(
            f"cannot write {error.filename or 'a file'}: {error.strerror}",
            hint="free some space or choose another folder with --out; what was built before is untouched",
        )
        storage.stage = name
        raise storage from error
    reporter.finished(name, time.monotonic() - start)


def track(items: Iterable[Item], *, total: int, description: str) -> Iterator[Item]:
    """Yield ``items`` and report progress after each."""
    for done, item in enumerate(items, start=1):
        yield item
        report_progress(description, done, total)


def report_progress(description: str, done: int, total: int, note: str = "") -> None:
    """Say how far a loop has come that cannot be written with :func:`track`, and what it has found so far."""
    _current().progress(description, done, total, note)


def _current() -> Reporter:
    return _reporter.get() or LoggingReporter()
