"""Run a program that may hang, flood or die, and always come back."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from edgeopt.errors import DeviceError

_MOST_BYTES = 16_000_000  # a report on a thousand samples has a few kB
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Finished:
    """How a program ended; a negative ``returncode`` is the signal that ended it, as in ``subprocess``."""

    returncode: int
    stdout: str
    stderr: str

    def last_words(self) -> str:
        """Return the end of what it said to stderr, on one line."""
        return " ".join(self.stderr.split())[-300:] or "it said nothing"


def run_limited(
    command: Sequence[str],
    *,
    what: str,
    timeout_s: float,
    stdin: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a program to its end, but no longer than ``timeout_s`` and for no more than 16 MB of output.

    The program and what it started are killed if the time is over or this process is interrupted.

    Args:
        command: the program and its arguments; no shell.
        what: says in messages whose answer is awaited.
        timeout_s: seconds.
        stdin: an open file; nothing if left out.
        environment: replaces this process's.

    Raises:
        DeviceError: the time is over, or it wrote too much.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command, stdin=stdin or subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, (stdout, stderr), what, time.monotonic() + timeout_s, timeout_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Finished(process.returncode, _text(stdout), _text(stderr))


def _wait(
    process: subprocess.Popen[bytes], outputs: Sequence[IO[bytes]], what: str, deadline: float, timeout_s: float
) -> None:
    while True:
        is_running = process.poll() is None
        if any(os.fstat(output.fileno()).st_size > _MOST_BYTES for output in outputs):
            raise DeviceError(f"{what}: more than {_MOST_BYTES:,} bytes of output, which is no report")
        if not is_running:
            return
        if time.monotonic() > deadline:
            raise DeviceError(f"{what}: no answer within {timeout_s:g} s", hint="--timeout SECONDS allows more")
        time.sleep(_LOOK_EVERY_S)


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(_MOST_BYTES).decode("utf-8", errors="replace")
