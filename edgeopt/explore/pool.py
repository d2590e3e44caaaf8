"""Where trials run side by side: Ray, started on this machine for the time of a sweep, or a cluster by its address.

A trial whose worker dies (killed, out of memory, its node gone) is tried again; one that ends with an error is not, as
it would end so again. What Ray has to say goes to its own logs; usage statistics stay at home, and a Ray that is
started here answers only who has the token of :attr:`Pool.token_file`.
"""

from __future__ import annotations

import io
import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeopt.errors import DeviceError, MissingDependencyError, UsageError
from edgeopt.explore.workers import let_waiting_threads_sleep
from edgeopt.native_stderr import held_back_stderr
from edgeopt.stage import logger

_CPUS = 2
"""What a trial is given if nothing is said: recipes train on two threads unless they say otherwise."""

_OBJECT_STORE_BYTES = 80 << 20
"""Ray's least; results are a few hundred bytes. Left to itself it would reserve a third of the memory."""


_CONNECT_S = 10.0


@dataclass(frozen=True)
class PoolSettings:
    """How trials are run.

    Attributes:
        address: of a cluster, ``auto``, ``host:port`` or ``ray://host:port``; ``None`` is this machine.
        jobs: how many side by side; ``None`` is as many as there are CPUs for.
        cpus: that each has to itself; ``None`` is 2, or 1 on a machine that has no more.
        retries: how often one is tried again after its worker died.
    """

    address: str | None = None
    jobs: int | None = None
    cpus: int | None = None
    retries: int = 2

    def filled(self) -> PoolSettings:
        """Return the same with what this machine says about the values left out.

        Raises:
            UsageError: this machine has fewer CPUs than is asked for.
        """
        if self.address is not None:
            return replace(self, cpus=self.cpus or _CPUS)
        there = len(os.sched_getaffinity(0))
        cpus = self.cpus or min(_CPUS, there)
        jobs = self.jobs or max(1, there // cpus)
        if jobs * cpus > there:
            raise UsageError(
                f"{jobs} trials side by side with {cpus} CPUs each need {jobs * cpus}, and this machine has {there}",
                hint="lower --jobs or --cpus, or give a cluster by --address",
            )
        return replace(self, jobs=jobs, cpus=cpus)


@dataclass(frozen=True)
class Shipped:
    """A folder that every node of a cluster gets a copy of, to work in; ``without`` some of what is in it."""

    folder: Path
    without: tuple[str, ...] = ()

    def runtime_env(self) -> dict[str, Any]:
        """Return the same as Ray understands it."""
        return {"working_dir": str(self.folder), "excludes": [f"/{name}" for name in self.without]}


@dataclass(frozen=True)
class Ended:
    """How one task ended: with ``value``, or with ``error`` where it could not return one, after ``attempts``."""

    name: str
    value: dict[str, Any] | None
    error: str
    attempts: int
    seconds: float


class Pool:
    """Runs tasks on Ray; made by :func:`ray_pool`."""

    def __init__(self, ray: ModuleType, settings: PoolSettings, dashboard: str) -> None:
        self._ray = ray
        self._settings = settings
        self.dashboard = dashboard
        """Its address, or why there is none."""

    def run(self, function: Callable[..., dict[str, Any]], tasks: Mapping[str, tuple[object, ...]]) -> Iterator[Ended]:
        """Call a function once for each task's arguments, and yield how each ended, in the order in which they do.

        Leaving before the last one, Ctrl-C included, kills what still runs.
        """
        remote = self._ray.remote(num_cpus=self._settings.cpus, max_retries=0)(function)
        waiting = deque((name, 1) for name in tasks)
        running: dict[Any, tuple[str, int, float]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self._settings.jobs or len(tasks)):
                    name, attempt = waiting.popleft()
                    running[remote.options(name=name).remote(*tasks[name])] = name, attempt, time.monotonic()
                (done,), _ = self._ray.wait(list(running), num_returns=1)
                name, attempt, start = running.pop(done)
                ended = self._ended(done, name, attempt, start)
                if ended is None:
                    waiting.appendleft((name, attempt + 1))
                else:
                    yield ended
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)

    def _ended(self, done: Any, name: str, attempt: int, start: float) -> Ended | None:
        """Return how a task ended, or ``None`` if it is to be tried again."""
        try:
            return Ended(name, self._ray.get(done), "", attempt, time.monotonic() - start)
        except self._ray.exceptions.RayError as error:
            if self._worker_died(error) and attempt <= self._settings.retries:
                logger.warning(
                    "%s: %s; tried again (%d of %d)", name, _first_line(error), attempt, self._settings.retries
                )
                return None
            cause = getattr(error, "cause", None)  # what the task raised
            text = f"{type(cause).__name__}: {_first_line(cause)}" if cause else _first_line(error)
            return Ended(name, None, text, attempt, time.monotonic() - start)

    def _worker_died(self, error: Exception) -> bool:
        """Return whether a task may end otherwise if it is tried again: it did not end by itself."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.RayTaskError):
            return isinstance(error.cause, MemoryError)
        return not isinstance(error, exceptions.RuntimeEnvSetupError | exceptions.TaskUnschedulableError)


@contextmanager
def ray_pool(settings: PoolSettings, *, token_file: Path, shipped: Shipped | None = None) -> Iterator[Pool]:
    """Start Ray here, or connect to a cluster, for the time of the block.

    Args:
        settings: see :meth:`PoolSettings.filled`.
        token_file: where the token goes that a Ray that is started here asks for; only its owner can read it.
        shipped: what the nodes of a cluster get a copy of.

    Raises:
        MissingDependencyError: Ray is not installed.
        DeviceError: there is no cluster at the address, or Ray does not start here.
        UsageError: no node of the cluster has so many CPUs.
    """
    settings = settings.filled()
    if settings.address is not None:
        _check_answers(settings.address)
    ray = _ray(settings, token_file)
    arguments = _here(settings) if settings.address is None else _there(settings.address, shipped)
    with redirect_stdout(_DebugLog()):  # where Ray says that a worker died
        try:
            context = _connect(ray, settings.address, arguments)
            if settings.address is not None:
                _check_cpus(ray, settings)
            yield Pool(ray, settings, _dashboard(context.dashboard_url, None if settings.address else token_file))
        finally:
            ray.shutdown()
            token_file.unlink(missing_ok=True)


class _DebugLog(io.TextIOBase):
    """Logs what is written to it."""

    def write(self, text: str) -> int:
        """Log the text, if there is any besides the end of a line."""
        if text.strip():
            logger.debug("ray: %s", text.rstrip())
        return len(text)


def _check_answers(address: str) -> None:
    """Refuse an address where nothing answers: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise UsageError(f"--address {address}: expected auto, host:port or ray://host:port")
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> DeviceError:
    hint = "ray start --head on a machine starts a cluster and prints its address"
    return DeviceError(f"no Ray cluster answers at {address}: {_first_line(error)}", hint=hint)


def _here(settings: PoolSettings) -> dict[str, Any]:
    num_cpus = (settings.jobs or 1) * (settings.cpus or 1)
    return {"address": "local", "num_cpus": num_cpus, "object_store_memory": _OBJECT_STORE_BYTES}


def _there(address: str, shipped: Shipped | None) -> dict[str, Any]:
    return {"address": address, "runtime_env": shipped.runtime_env() if shipped else None}


def _ray(settings: PoolSettings, token_file: Path) -> ModuleType:
    """Import Ray, which reads what is set here when it is imported; what the user has set stays as it is."""
    if find_spec("ray") is None:
        raise MissingDependencyError("ray is not installed", hint="pip install 'edgeopt[sweep]'")
    let_waiting_threads_sleep()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")  # weights are often ignored by git, and needed
    if settings.address is None and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        token = os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        token_file.parent.mkdir(parents=True, exist_ok=True)
        token_file.unlink(missing_ok=True)
        with open(os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token)
    import ray

    return ray


def _connect(ray: ModuleType, address: str | None, arguments: Mapping[str, Any]) -> Any:
    with held_back_stderr() as noise:
        try:
            return ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError, ImportError) as error:
            failure = error
    for line in noise:
        logger.debug("ray: %s", line.decode(errors="replace").rstrip())
    if address is not None:
        raise _unreachable(address, failure) from failure
    raise DeviceError(
        f"Ray does not start on this machine: {_first_line(failure)}", hint="-v shows what Ray says"
    ) from failure


def _check_cpus(ray: ModuleType, settings: PoolSettings) -> None:
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if (settings.cpus or 1) > largest:
        raise UsageError(
            f"a trial is to have {settings.cpus} CPUs, and no node of the cluster has more than {largest}",
            hint=f"--cpus {max(largest, 1)}",
        )


def _dashboard(url: str | None, token_file: Path | None) -> str:
    """Return the dashboard's address for people, or why there is none."""
    if not url:
        missing = find_spec("aiohttp_cors") is None
        return "none: pip install 'ray[default]' has it" if missing else "none: Ray started without one"
    return f"http://{url}" + (
        f" (the token it asks for is in {token_file})" if token_file and token_file.exists() else ""
    )


def _first_line(error: Exception) -> str:
    """Return the first line of a message, and the last one too where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 and lines[0].endswith(":") else lines[0]
