"""Several processes that do one job together: they are started, join a group, and end together.

Every process does the whole job; what they share out among them is in :mod:`edgeopt.compress.parallel`. The first
process is the caller's own and writes the result; what the others write goes to a folder that is thrown away. When one
is killed, its connections close, and the others end within seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from torch import distributed
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from edgeopt.errors import CompressionError, EdgeoptError, RecipeError
from edgeopt.stage import logger

# A process that answers nothing for so long hangs.
_PATIENCE = timedelta(minutes=5)
_REFUSED = 3  # how a process ends whose job raised an error that edgeopt raises on purpose
_GO_ON = "run the same command again: it goes on from its last checkpoint"

_REFUSAL = "refusal"

Result = TypeVar("Result")
# What a process does, given a folder to write to; it travels to other processes, so it is plain data.
Job = Callable[[Path], Result]


def check_cores(count: int, *, oversubscribe: bool) -> None:
    """Raise if there are more processes than cores that this process may use.

    Raises:
        RecipeError: says how many there are.
    """
    cores = len(os.sched_getaffinity(0))
    if count > cores and not oversubscribe:
        raise RecipeError(
            f"{count} processes are to train, but there are {cores} cores for them",
            hint=f"set devices = {cores}; with oversubscribe = true they share cores, which is slower",
        )


def do_together(job: Job[Result], folder: Path, count: int) -> Result:
    """Do a job in ``count`` processes of this machine, this one among them, and return its result.

    Raises:
        CompressionError: a process was lost.
        EdgeoptError: what the job raises.
    """
    if count == 1:
        return job(folder)
    store = TCPStore("127.0.0.1", 0, count, is_master=True, timeout=_PATIENCE, wait_for_workers=False)
    spawning = multiprocessing.get_context("spawn")
    others = [
        spawning.Process(target=_follow, args=(job, rank, count, store.port), daemon=True) for rank in range(1, count)
    ]
    try:
        for other in others:
            other.start()
        _await(others, store)
        with _joined(store, 0, count):
            return job(folder)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise _explained(error, others, store) from error
    finally:
        for other in others:
            if other.pid is not None:
                other.kill()
                other.join()


def _follow(job: Job[Any], rank: int, count: int, port: int) -> None:
    """Do a job as one of the other processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    logger.setLevel("ERROR")
    store = TCPStore("127.0.0.1", port, count, is_master=False, timeout=_PATIENCE)
    store.set(_ready(rank), "")
    try:
        with _joined(store, rank, count), TemporaryDirectory() as scratch:
            job(Path(scratch))
    except EdgeoptError as error:
        store.set(_REFUSAL, f"process {rank}: {error}")
        sys.exit(_REFUSED)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        sys.exit(_REFUSED)  # the first process ended, and told why


@contextmanager
def _joined(store: Store, rank: int, count: int) -> Iterator[None]:
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _await(others: Sequence[SpawnProcess], store: TCPStore) -> None:
    """Wait until every process is there, or one has died."""
    while not store.check([_ready(rank) for rank in range(1, len(others) + 1)]):
        if not all(other.is_alive() for other in others):
            raise CompressionError("a process of the training could not be started")
        time.sleep(0.02)


def _explained(error: RuntimeError, others: Sequence[SpawnProcess], store: TCPStore) -> CompressionError:
    """Return what to tell when the connection to another process was lost: why that one ended."""
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline and all(other.is_alive() for other in others):
        time.sleep(0.02)
    if store.check([_REFUSAL]):
        return CompressionError(store.get(_REFUSAL).decode())
    for rank, other in enumerate(others, start=1):
        if other.exitcode not in (None, 0, _REFUSED):
            how = f"was killed by {signal.Signals(-other.exitcode).name}" if other.exitcode < 0 else "failed"
            return CompressionError(f"process {rank} of the training's {len(others) + 1} {how}", hint=_GO_ON)
    return lost(error)


def lost(error: RuntimeError) -> CompressionError:
    """Return what to tell when another process is gone, and nothing is known of it."""
    return CompressionError(f"another process of the training is gone or hangs: {error}", hint=_GO_ON)


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an error says that another process of the group is gone or hangs."""
    return "gloo" in str(error) or isinstance(error, distributed.DistError)


def _ready(rank: int) -> str:
    return f"ready {rank}"


class Torchrun:
    """The processes that ``torchrun`` started: the first one decides what is done, and all do it."""

    def __init__(self) -> None:
        distributed.init_process_group("gloo", timeout=_PATIENCE)
        # The others wait as long as it takes until there is something for them to do.
        self._jobs = distributed.new_group(timeout=timedelta(days=30))
        self.rank = distributed.get_rank()

    def do(self, job: Job[Result], folder: Path, _trainings: object) -> Result:
        """Do a job in all processes, and return the result of this one, which must be the first.

        Raises:
            CompressionError: a process was lost.
            EdgeoptError: what the job raises.
        """
        try:
            self._next(job)
            return job(folder)
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            raise lost(error) from error

    def follow(self) -> None:
        """Do what the first process does, until it has nothing more to do."""
        logger.setLevel("ERROR")
        while (job := self._next(None)) is not None:
            with TemporaryDirectory() as scratch:
                job(Path(scratch))

    def _next(self, job: Job[Any] | None) -> Job[Any] | None:
        box = [job]
        distributed.broadcast_object_list(box, src=0, group=self._jobs)
        return box[0]

    def end(self) -> None:
        """Let the others go."""
        if self.rank == 0:
            self._next(None)
        distributed.destroy_process_group()


def started_by_torchrun() -> bool:
    """Return whether this is one of several processes that ``torchrun`` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ
