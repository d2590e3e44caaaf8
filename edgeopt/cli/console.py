"""What the command line prints and where: results to stdout, progress and logs to stderr."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 5.0
_WIDTH_WITHOUT_TERMINAL = 1000  # a table in a pipe or a file is never folded


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under headings to stdout; ``passed`` and ``failed`` are coloured on a terminal."""
    from rich.table import Table
    from rich.text import Text

    styles = {"passed": "green", "failed": "bold red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not str: square brackets in a path are no markup.
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    console = _console(stderr=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def write_json(destination: str | None, value: Mapping[str, object]) -> None:
    """Write a result to a file or, for ``-``, to stdout; do nothing for ``None``."""
    if destination is None:
        return
    from edgeopt.artifacts import canonical_json
    from edgeopt.atomic import write_text

    if destination == "-":
        click.echo(canonical_json(value), nl=False)
    else:
        write_text(Path(destination), canonical_json(value))


def shown_path(path: Path) -> str:
    """Return a path relative to the working directory if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def bytes_text(num_bytes: int) -> str:
    """Return a size as people read it: ``33.1 kB``; a kB has 1,000 bytes."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    exponent = min(int(math.log10(num_bytes) // 3), 3)
    return f"{num_bytes / 1000**exponent:.1f} {'kMG'[exponent - 1]}B"


def percent_text(share: float | None) -> str:
    """Return a share as a percentage; ``-`` for one that does not exist. Only 1.0 itself reads ``100 %``."""
    if share is None:
        return "-"
    return "100 %" if share == 1 else f"{min(share * 100, 99.99):.2f} %"


@contextmanager
def reporting(*, verbose: bool, quiet: bool) -> Iterator[None]:
    """Send the progress and the logs of everything inside the block to stderr, as loud as asked for.

    Raises:
        UsageError: both are asked for.
    """
    from edgeopt.stage import logger, reporting_to

    if verbose and quiet:
        raise click.UsageError("-v and -q contradict each other")
    console = _console(stderr=True)
    with ExitStack() as stack:
        stack.enter_context(_logging_to(logger, console, _level(verbose=verbose, quiet=quiet)))
        if quiet:
            stack.enter_context(reporting_to(SilentReporter()))
        elif console.is_terminal:
            stack.enter_context(reporting_to(stack.enter_context(_bars(console))))
        else:
            stack.enter_context(reporting_to(LineReporter()))
        yield


class SilentReporter:
    """Says nothing."""

    def started(self, stage: str) -> None:
        """Say nothing."""

    def finished(self, stage: str, seconds: float) -> None:
        """Say nothing."""

    def progress(self, description: str, done: int, total: int, note: str = "") -> None:
        """Say nothing."""


class LineReporter:
    """Writes plain lines to stderr: the start and end of a stage, and in between one line every five seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def started(self, stage: str) -> None:
        """Write the stage's name."""
        self._line(f"{stage} ...")

    def finished(self, stage: str, seconds: float) -> None:
        """Write how long it took."""
        self._line(f"{stage} done in {seconds:.1f} s")

    def progress(self, description: str, done: int, total: int, note: str = "") -> None:
        """Write how far it has come, unless another line was written just before."""
        if self._clock() - self._last >= _SECONDS_BETWEEN_LINES:
            self._line(f"{description}: {done}/{total}" + (f", {note}" if note else ""))

    def _line(self, text: str) -> None:
        self._last = self._clock()
        click.echo(text, err=True)


class BarReporter:
    """Draws a bar for every loop of the stage that runs, and leaves one line for a stage that ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def started(self, stage: str) -> None:
        """Show a bar that moves without saying how far."""
        self._tasks[stage] = self._progress.add_task(stage, total=None)

    def finished(self, stage: str, seconds: float) -> None:
        """Take the stage's bars away and write how long it took."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        self._progress.console.print(f"{stage} done in {seconds:.1f} s", markup=False, highlight=False)

    def progress(self, description: str, done: int, total: int, note: str = "") -> None:
        """Move the loop's bar."""
        if description not in self._tasks:
            self._tasks[description] = self._progress.add_task(description, total=total)
        shown = f"{description}, {note}" if note else description
        self._progress.update(self._tasks[description], completed=done, total=total, description=shown)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    return console


def _level(*, verbose: bool, quiet: bool) -> int:
    if verbose:
        return logging.DEBUG
    return logging.ERROR if quiet else logging.INFO


@contextmanager
def _bars(console: Console) -> Iterator[BarReporter]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=True) as progress:
        yield BarReporter(progress)


@contextmanager
def _logging_to(logger: logging.Logger, console: Console, level: int) -> Iterator[None]:
    handler = _ConsoleHandler(console)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _ConsoleHandler(logging.Handler):
    """Writes records through rich, so that they do not tear the bars apart."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a warning says that it is one."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        self._console.print(prefix + self.format(record), markup=False, soft_wrap=True)
