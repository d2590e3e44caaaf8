"""How long an inference takes on this device, what memory it takes, and whether it stays so when the device gets hot.

This file travels in every bundle as ``run_latency.py``, beside ``run_parity.py``, whose ``--latency`` and
``--sustained`` use it. It needs Python 3.8 alone. A call is measured as a program makes it: inputs in, outputs out, so
that on Python its own share, some 0.01 to 0.1 ms, is in it.

What the kernel does not tell is ``None``: no board tells everything.
"""

from __future__ import annotations

import glob
import os
import resource
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Facts = dict[str, Any]
    Infer = Callable[[], object]

DEFAULT_SECONDS = 2.0
MIN_RUNS = 10
NUM_WINDOWS = 10

# Raspberry Pi's firmware, bits 0 to 3: under-voltage, frequency capped, throttled, soft temperature limit; now.
# Source: Raspberry Pi documentation, vcgencmd get_throttled.
_THROTTLED_NOW = 0xF
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def measure(infer: Infer, threads: int, seconds: float | None = None, sustained_s: float | None = None) -> Facts:
    """Measure inferences; none may have been run before, so that the first one is the first.

    Args:
        infer: runs one inference to its end.
        threads: of the runtime; it is reported.
        seconds: how long to run, but at least ten inferences; 2 if left out.
        sustained_s: how long to go on in ten windows; 0 and ``None``: not at all.
    """
    first = _timed(infer)
    times = run_for(infer, seconds or DEFAULT_SECONDS, MIN_RUNS)
    report: Facts = {
        "latency_ms": {"first": first, **percentiles(times), "runs": len(times), "threads": threads},
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_memory_of": "the whole process: Python with NumPy, the golden vectors, the runtime and the model",
    }
    if sustained_s:
        report["sustained"] = sustained(infer, sustained_s)
    return report


def run_for(infer: Infer, seconds: float, min_runs: int = 1) -> list[float]:
    """Run one inference after the other, and return how many milliseconds each took."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < min_runs or time.perf_counter() < end:
        times.append(_timed(infer))
    return times


def _timed(infer: Infer) -> float:
    start = time.perf_counter()
    infer()
    return (time.perf_counter() - start) * 1e3


def percentiles(times: list[float]) -> dict[str, float]:
    """Return p50, p90 and p99 by nearest rank: each is a time that was measured; of under 100, p99 is the worst."""
    ordered = sorted(times)
    return {f"p{percent}": ordered[-(-percent * len(ordered) // 100) - 1] for percent in (50, 90, 99)}


def peak_memory_bytes(status: str = "/proc/self/status") -> int | None:
    """Return the most resident memory that this process ever had.

    Linux's ``VmHWM`` starts anew with the program; ``getrusage`` also counts what its parent had when it forked.
    """
    for line in _read(status).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def sustained(infer: Infer, seconds: float, root: str = "/") -> list[Facts]:
    """Run for ``seconds`` in ten windows, and look at temperature, frequency and throttling at the end of each."""
    windows = []
    for index in range(NUM_WINDOWS):
        throttlings = _throttle_count(root)
        times = run_for(infer, seconds / NUM_WINDOWS)
        figures = {f"{name}_ms": value for name, value in percentiles(times).items()}
        end_s = seconds * (index + 1) / NUM_WINDOWS
        windows.append({"end_s": end_s, "runs": len(times), **figures, **thermal_state(root, throttlings)})
    return windows


def thermal_state(root: str = "/", throttlings_before: int | None = None) -> Facts:
    """Return what the kernel tells now: the hottest zone, the slowest core, and whether the CPU is held back."""
    zones = [int(text) / 1000 for text in _read_all(root, "sys/class/thermal/thermal_zone*/temp") if _is_number(text)]
    cores = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
    kilohertz = [int(text) for text in _read_all(root, cores) if _is_number(text)]
    return {
        "temperature_c": max(zones, default=None),
        "frequency_mhz": min(kilohertz) / 1000 if kilohertz else None,
        "throttled": _is_throttled(root, throttlings_before),
    }


def _is_throttled(root: str, throttlings_before: int | None) -> bool | None:
    """Return what a Raspberry Pi's firmware says, else whether Intel's counters went up."""
    told = _read(os.path.join(root, _FIRMWARE)).strip()
    if told:
        return bool(int(told, 16) & _THROTTLED_NOW)
    now = _throttle_count(root)
    return None if now is None or throttlings_before is None else now > throttlings_before


def _throttle_count(root: str) -> int | None:
    found = _read_all(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [int(text) for text in found if _is_number(text)]
    return sum(counts) if counts else None


def _read_all(root: str, pattern: str) -> list[str]:
    return [_read(path).strip() for path in sorted(glob.glob(os.path.join(root, pattern)))]


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read()
    except OSError:  # a sensor that is off cannot be read
        return ""


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()
