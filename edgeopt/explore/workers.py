"""Runs trials here, one after the other, or in processes side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from edgeopt.errors import EdgeoptError


class Inline(Executor):
    """Does what it is given at once, in this process: its progress is seen, and its order is always the same."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function and return what it returned; what it raises is raised here."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def let_waiting_threads_sleep() -> None:
    """Have processes that are started from here not spin while their threads wait: trials side by side share the cores.

    OpenMP reads it when torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def workers(jobs: int) -> Iterator[Executor]:
    """Yield what runs ``jobs`` calls at a time; when the block ends, by Ctrl-C too, none of them runs any more.

    Raises:
        EdgeoptError: one of the processes was killed.
    """
    if jobs == 1:
        yield Inline()
        return
    let_waiting_threads_sleep()
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches every process of a terminal, and a worker has nothing to say about it.
    with ProcessPoolExecutor(jobs, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise EdgeoptError(
                "the process of a trial was killed, for too little memory perhaps",
                hint="the same command goes on; give fewer --jobs",
            ) from error
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
