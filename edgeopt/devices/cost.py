"""What a run costs on a device, as its report says it, and whether the report can be believed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NO_LATENCY = "an emulator's milliseconds are no latency"
NO_COUNT = "instructions are counted on qemu:pi3, qemu:pi4 and qemu:pi5"


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference: the first one apart, then percentiles over ``runs`` others on ``threads``."""

    first: float
    p50: float
    p90: float
    p99: float
    runs: int
    threads: int


@dataclass(frozen=True)
class Window:
    """A part of a sustained run that ended after ``end_s`` seconds; ``None`` is what the kernel does not tell.

    The temperature is that of the hottest zone and the frequency that of the slowest core, both at its end.
    """

    end_s: float
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    temperature_c: float | None
    frequency_mhz: float | None
    throttled: bool | None


@dataclass(frozen=True)
class Instructions:
    """Guest instructions of one inference in all, and of each kind of operator; these are no cycles.

    ``operators`` and ``rest`` make up ``total``. An operator's are those that it takes as a model of its own, so that
    ``rest`` has the call itself, and is less than 0 where operators share what each of them does when it is alone.
    ``rest`` is ``None`` if only the total was counted. ``float_total`` are those of the float network, after a build.
    """

    total: int
    operators: Mapping[str, int]
    rest: int | None
    float_total: int | None = None


@dataclass(frozen=True)
class Cost:
    """What was measured or counted.

    ``peak_memory_of`` says what the peak is of, ``not_measured`` and ``not_counted`` why something that was asked for
    is not there.
    """

    latency_ms: Latency | None = None
    peak_memory_bytes: int | None = None
    peak_memory_of: str | None = None
    sustained: tuple[Window, ...] = ()
    not_measured: str | None = None
    instructions: Instructions | None = None
    not_counted: str | None = None

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> Cost:
        """Read the measured part of a runner's report; what was not measured is absent there.

        Raises:
            ValueError: a figure cannot be true.
            TypeError: a figure is missing, or has a name that is not known.
        """
        if "latency_ms" not in report:
            return cls()
        latency = Latency(**report["latency_ms"])
        windows = tuple(Window(**window) for window in report.get("sustained", []))
        for problem in _problems(latency, windows, report["peak_memory_bytes"]):
            raise ValueError(problem)
        return cls(latency, report["peak_memory_bytes"], report["peak_memory_of"], windows)


def _problems(latency: Latency, windows: tuple[Window, ...], peak_memory_bytes: Any) -> Iterator[str]:
    yield from _of_percentiles("latency", latency.p50, latency.p90, latency.p99, latency.runs)
    if not _is_positive(latency.first):
        yield f"a first inference of {latency.first!r} ms"
    if not _is_count(latency.threads):
        yield f"{latency.threads!r} threads"
    if peak_memory_bytes is not None and not _is_count(peak_memory_bytes):
        yield f"a peak of {peak_memory_bytes!r} bytes"
    for window in windows:
        yield from _of_percentiles("sustained run", window.p50_ms, window.p90_ms, window.p99_ms, window.runs)
        if window.temperature_c is not None and not _is_number(window.temperature_c):
            yield f"a temperature of {window.temperature_c!r}"
        if window.frequency_mhz is not None and not _is_positive(window.frequency_mhz):
            yield f"a frequency of {window.frequency_mhz!r} MHz"
    if [window.end_s for window in windows] != sorted({window.end_s for window in windows}):
        yield "windows of a sustained run that do not follow one another"


def _of_percentiles(what: str, p50: Any, p90: Any, p99: Any, runs: Any) -> Iterator[str]:
    if not all(map(_is_positive, (p50, p90, p99))) or not p50 <= p90 <= p99:
        yield f"{what} with p50, p90 and p99 of {p50!r}, {p90!r} and {p99!r} ms"
    if not _is_count(runs):
        yield f"{what} over {runs!r} runs"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_positive(value)
