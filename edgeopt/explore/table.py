"""The table of many trials: rows for people and for a spreadsheet, one column for each value that was varied."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from edgeopt.explore.figures import Figures
from edgeopt.explore.record import TrialRecord

_FIGURES = tuple(item.name for item in fields(Figures))


def varied_keys(records: Sequence[TrialRecord]) -> tuple[str, ...]:
    """Return the keys that have another value in another trial, in the order in which they first come."""
    return tuple(
        key for key in _keys(records) if any(_value(record, key) != _value(records[0], key) for record in records)
    )


def csv_text(records: Sequence[TrialRecord]) -> str:
    """Return one line a trial under a line of headings, with all replaced values; no figure is an empty cell."""
    keys = _keys(records)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("target", *keys, "status", *_FIGURES, "seconds", "attempts", "node", "bundle", "error"))
    for record in records:
        result = record.result
        values = [_cell(result.overrides.get(key)) for key in keys]
        figures = [_cell(getattr(result.figures, name)) for name in _FIGURES]
        last = (f"{result.seconds:.1f}", record.attempts, record.node, result.bundle or "", result.error)
        writer.writerow((result.target, *values, result.status, *figures, *last))
    return stream.getvalue()


def _keys(records: Sequence[TrialRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for record in records for key in record.result.overrides))


def _value(record: TrialRecord, key: str) -> str:
    return repr(record.result.overrides.get(key))  # not ==, by which True is 1


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
