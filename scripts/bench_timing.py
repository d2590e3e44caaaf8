"""Clocks and memory: interleaved timings in this process, and whole process trees watched from outside.

Two things are compared only by timings of one run, taken in turns: what else the machine does then hits both alike.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.02

Action = Callable[[], object]


@dataclass(frozen=True)
class Timings:
    """Seconds of wall and CPU time, one of each a round."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def milliseconds(self) -> float:
        """Return the median wall time of a round."""
        return 1000 * statistics.median(self.wall)


@dataclass(frozen=True)
class Finished:
    """What a command took; ``peak_bytes`` is of its whole process tree, ``None`` where the system does not tell."""

    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    output: str
    errors: str


def interleaved(actions: Mapping[str, Action], *, rounds: int, repeats: int = 1) -> dict[str, Timings]:
    """Time actions in turns: each round gives each action one block of calls, every other round in reverse order.

    Args:
        actions: what to time, by name; each is called once before, untimed.
        rounds: how many timings each gets.
        repeats: calls in a block; its median is the round's timing, so that caches are as warm as in steady use.
    """
    for action in actions.values():
        action()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    order = list(actions)
    for index in range(rounds):
        for name in order if index % 2 == 0 else reversed(order):
            taken[name].append(_block(actions[name], repeats))
    return {name: Timings(*map(tuple, zip(*pairs, strict=True))) for name, pairs in taken.items()}


def ratio(numerator: Timings, denominator: Timings) -> float:
    """Return the median over rounds of one wall time over the other."""
    return statistics.median(a / b for a, b in zip(numerator.wall, denominator.wall, strict=True))


def spread(numerator: Timings, denominator: Timings) -> str:
    """Return the middle half of the rounds' ratios, and the ratio by CPU time, for a remark."""
    ratios = sorted(a / b for a, b in zip(numerator.wall, denominator.wall, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
    cpu = statistics.median(numerator.cpu) / statistics.median(denominator.cpu)
    return f"half of {len(ratios)} rounds within {low:.2f}-{high:.2f}; by CPU time {cpu:.2f}"


def run_watched(command: Sequence[str], folder: Path | None = None) -> Finished:
    """Run a command to its end and watch the memory of its process tree."""
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    before = os.times()
    watcher.start()
    output, errors = process.communicate()
    seconds = time.monotonic() - start
    watcher.join()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Finished(process.returncode, seconds, cpu, peak[0] or None, output, errors)


def own_peak_bytes() -> int | None:
    """Return the largest resident memory that this process had."""
    return _peak_of("self")


def load() -> str:
    """Return how busy the machine is, to stand beside what it slowed down."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _block(action: Action, repeats: int) -> tuple[float, float]:
    taken = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    return statistics.median(wall for wall, _ in taken), statistics.median(cpu for _, cpu in taken)


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_peak_of(pid) or 0 for pid in _tree(process.pid)))
        time.sleep(_POLL_SECONDS)


def _tree(pid: int | str) -> list[str]:
    """Return a process and all below it."""
    try:
        tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it ended while we looked
        tasks = []
    return [str(pid), *(below for task in tasks for child in task.split() for below in _tree(child))]


def _peak_of(pid: str) -> int | None:
    # Not ru_maxrss: it counts what the parent had in memory before exec.
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None
