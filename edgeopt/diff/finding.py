"""What a comparison shows: the first tensor under the limit, what made it, and what would mend it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.diff.comparison import TensorDifference

DEFAULT_LIMIT_DB = 20.0

_LONG_TAIL = 4.0  # times the 99.9th percentile: what lies between takes bits from everything else
_CLIPPED = 0.75  # of the range; a quantizer that saturates gives no more than its largest integer
_BIASED = 0.5  # of the error's root mean square
_SUDDEN_DB = 6.0  # a fall that one operator made, and not the errors that flowed into it
_MASK = 1e3  # a constant that stands for minus infinity in front of a Softmax


@dataclass(frozen=True)
class Finding:
    """The first tensor under the limit, how far it fell there, and advice; each piece has its evidence in it."""

    tensor: TensorDifference
    fall_db: float
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        fall = None if math.isnan(self.fall_db) else self.fall_db
        return {"tensor": self.tensor.to_json(), "fall_db": fall, "advice": list(self.advice)}


def first_under(tensors: Sequence[TensorDifference], limit_db: float) -> Finding | None:
    """Return the first tensor in graph order whose ratio is under the limit; NaN is under every limit.

    Its fall is from the lowest ratio before it in the graph.
    """
    lowest = math.inf
    for tensor in tensors:
        if not tensor.sqnr_db >= limit_db:
            fall = lowest - tensor.sqnr_db if math.isfinite(lowest) else math.nan
            return Finding(tensor, fall, tuple(_advice(tensor, fall)))
        lowest = min(lowest, tensor.sqnr_db)
    return None


def _advice(tensor: TensorDifference, fall_db: float) -> list[str]:
    if math.isnan(tensor.sqnr_db):
        return [f"a value is NaN or infinite on {tensor.worst_sample}: look at the network on that sample first"]
    pieces = (_on_range(tensor), _on_mask(tensor), _on_bias(tensor), _on_operator(tensor, fall_db))
    return [piece for piece in pieces if piece]


def _on_range(tensor: TensorDifference) -> str:
    width, other = tensor.maximum - tensor.minimum, tensor.other_maximum - tensor.other_minimum
    reached = max(abs(tensor.other_minimum), abs(tensor.other_maximum))
    if width > 0 and other < _CLIPPED * width and tensor.tail.p999 > reached:  # a few clipped values are chosen so
        return (
            f"values reach [{tensor.minimum:.4g}, {tensor.maximum:.4g}] and are cut off at "
            f"[{tensor.other_minimum:.4g}, {tensor.other_maximum:.4g}]: calibrate on more samples like "
            f"{tensor.worst_sample}, or with calibration.method = 'minmax'"
        )
    if tensor.tail.p999 > 0 and tensor.tail.maximum > _LONG_TAIL * tensor.tail.p999:
        return (
            f"one value in a thousand is above {tensor.tail.p999:.4g}, the largest is {tensor.tail.maximum:.4g}: most "
            "of the 256 steps are for a few values; try calibration.method = 'auto'"
        )
    return ""


def _on_mask(tensor: TensorDifference) -> str:
    if tensor.tail.maximum > _MASK and tensor.operator in ("Add", "Where", "Sub"):
        return "a constant stands for minus infinity here: correct.clamp_masks = 'on' makes it smaller"
    return ""


def _on_bias(tensor: TensorDifference) -> str:
    if tensor.rms_error > 0 and abs(tensor.mean_error) > _BIASED * tensor.rms_error:
        return (
            f"the error is one-sided, {tensor.mean_error:.3g} on average of {tensor.rms_error:.3g}: "
            "correct.correct_bias = 'on' takes it out"
        )
    return ""


def _on_operator(tensor: TensorDifference, fall_db: float) -> str:
    if fall_db < _SUDDEN_DB:
        return (
            "the errors of the operators before it add up, no single one is to blame: with [accuracy] max_drop the "
            "build finds the fewest to move"
        )
    by = "" if math.isnan(fall_db) else f" loses {fall_db:.1f} dB by itself"
    return f"{tensor.operator}{by}: [quantize.nodes] {tensor.node!r} = 'float'"
