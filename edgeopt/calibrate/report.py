"""What was seen of every tensor and what was made of it, for people and for JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgeopt.artifacts import Ranges, TensorRange
from edgeopt.calibrate.statistics import Statistics, TensorStatistics

TAIL_SHARES = (0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class TensorReport:
    """One tensor: the range observed and the one chosen, by which method, and what lies outside.

    ``clipped_share`` of the values lies outside the chosen range; ``tail`` are the magnitudes that
    :data:`TAIL_SHARES` of the values do not exceed. Both are ``None`` where only minimum and maximum were kept.
    """

    name: str
    observed: TensorRange
    chosen: TensorRange
    method: str
    clipped_share: float | None
    tail: tuple[float, ...] | None


@dataclass(frozen=True)
class CalibrationReport:
    """All tensors of a network under one scheme, and what cannot be right with the samples."""

    scheme: str
    num_samples: int
    warnings: tuple[str, ...]
    tensors: tuple[TensorReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return asdict(self)


def calibration_report(statistics: Statistics, ranges: Ranges, scheme: str) -> CalibrationReport:
    """Set ranges beside the statistics that they were chosen from."""
    methods: Mapping[str, Any] = json.loads(ranges.path.read_text(encoding="utf-8"))["tensors"]
    tensors = (
        _tensor(name, item, ranges.tensors[name], methods[name]["method"])
        for name, item in sorted(statistics.tensors.items())
    )
    return CalibrationReport(scheme, len(statistics.digests), statistics.warnings, tuple(tensors))


def _tensor(name: str, item: TensorStatistics, chosen: TensorRange, method: str) -> TensorReport:
    if not len(item.counts):
        return TensorReport(name, item.seen, chosen, method, None, None)
    found = item.distribution()
    share = found.clipped_share(chosen.minimum, chosen.maximum)
    return TensorReport(name, item.seen, chosen, method, share, tuple(map(found.magnitude, TAIL_SHARES)))
