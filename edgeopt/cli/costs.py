"""What a run cost on each device, as tables and as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import bytes_text, print_table

if TYPE_CHECKING:
    from edgeopt.devices.cost import Cost, Instructions, Latency, Window
    from edgeopt.errors import EdgeoptError
    from edgeopt.verdict import ParityReport

LATENCY_COLUMNS = ("device", "first", "p50", "p90", "p99", "runs", "threads", "peak memory", "CPU")
WINDOW_COLUMNS = ("until", "p50", "p90", "p99", "runs", "temperature", "frequency", "throttled")
NOT_TOLD = "-"


def show_costs(verdicts: Mapping[str, ParityReport | EdgeoptError]) -> None:
    """Print latencies of all devices in one table, then each device's sustained run and instructions."""
    from edgeopt.errors import EdgeoptError

    reports = {name: verdict for name, verdict in verdicts.items() if not isinstance(verdict, EdgeoptError)}
    rows = [
        _latency_cells(name, report, latency)
        for name, report in reports.items()
        if (latency := report.cost.latency_ms) is not None
    ]
    if rows:
        click.echo()
        print_table(LATENCY_COLUMNS, rows)
        click.echo(
            "peak memory is that of "
            + ", and of ".join(sorted({r.cost.peak_memory_of or "" for r in reports.values() if r.cost.latency_ms}))
        )
    for name, report in reports.items():
        if report.cost.not_measured is not None:
            click.echo(f"{name}: no latency: {report.cost.not_measured}")
        if report.cost.not_counted is not None:
            click.echo(f"{name}: not counted: {report.cost.not_counted}")
        if report.cost.sustained:
            click.echo(f"\n{name}, sustained:")
            print_table(WINDOW_COLUMNS, map(_window_cells, report.cost.sustained))
        if report.cost.instructions is not None:
            click.echo(f"\n{name}, one inference on one thread (instructions are not cycles):")
            print_table(("operators", "instructions", "share"), _instruction_rows(report.cost.instructions))


def cost_facts(cost: Cost) -> Iterator[tuple[str, str]]:
    """Yield what was measured, by name and as text, for JUnit."""
    if cost.latency_ms is not None:
        for name in ("first", "p50", "p90", "p99"):
            yield f"latency_{name}_ms", f"{getattr(cost.latency_ms, name):.3f}"
        yield "threads", str(cost.latency_ms.threads)
    if cost.peak_memory_bytes is not None:
        yield "peak_memory_bytes", str(cost.peak_memory_bytes)
    if cost.instructions is not None:
        yield "instructions", str(cost.instructions.total)
    for name in ("not_measured", "not_counted"):
        if (reason := getattr(cost, name)) is not None:
            yield name, reason


def _latency_cells(name: str, report: ParityReport, latency: Latency) -> tuple[str, ...]:
    peak = report.cost.peak_memory_bytes
    times = (_milliseconds(time) for time in (latency.first, latency.p50, latency.p90, latency.p99))
    memory = NOT_TOLD if peak is None else bytes_text(peak)
    return (name, *times, f"{latency.runs:,}", str(latency.threads), memory, report.cpu or NOT_TOLD)


def _window_cells(window: Window) -> tuple[str, ...]:
    return (
        f"{window.end_s:g} s",
        *map(_milliseconds, (window.p50_ms, window.p90_ms, window.p99_ms)),
        f"{window.runs:,}",
        NOT_TOLD if window.temperature_c is None else f"{window.temperature_c:.1f} °C",
        NOT_TOLD if window.frequency_mhz is None else f"{window.frequency_mhz:.0f} MHz",
        NOT_TOLD if window.throttled is None else "yes" if window.throttled else "no",
    )


def _instruction_rows(counted: Instructions) -> Iterator[tuple[str, str, str]]:
    """Yield the operators that take most first, then the rest and the sum."""
    parts = sorted(counted.operators.items(), key=lambda item: -item[1])
    if counted.rest is not None:
        parts.append(("rest", counted.rest))
    parts.append(("all", counted.total))
    if counted.float_total is not None:
        parts.append(("the float network", counted.float_total))
    for name, count in parts:
        yield name, f"{count:,}", f"{count / counted.total:.1%}"


def _milliseconds(time: float) -> str:
    return f"{time:.3f} ms"
