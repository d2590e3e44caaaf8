"""Compares two forms of a network tensor by tensor, sample by sample, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.diff.network import Network
from edgeopt.errors import UsageError
from edgeopt.parity import MAX_SQNR_DB
from edgeopt.samples import Sample
from edgeopt.stage import track

_TAIL = (0.5, 0.99, 0.999, 0.9999)
_BINS = 2**12  # of the magnitudes, by their logarithm: each is 1.7 % wide
_LOG2_RANGE = (-60.0, 40.0)


@dataclass(frozen=True)
class Tail:
    """How a tensor's magnitudes lie: quantiles of ``|x|`` to 1.7 %, and the largest."""

    median: float
    p99: float
    p999: float
    p9999: float
    maximum: float


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor of the second network differs from the first, over all samples.

    ``sqnr_db`` is the ratio of the first's power to the difference's, within +-200; ``cosine`` is between the two;
    ``max_error`` the largest absolute difference and ``worst_sample`` where it is. ``mean_error`` is signed. All are
    NaN if a value is NaN or infinite.
    """

    name: str
    operator: str
    node: str
    sqnr_db: float
    cosine: float
    max_error: float
    worst_sample: str
    mean_error: float
    rms_error: float
    minimum: float
    maximum: float
    other_minimum: float
    other_maximum: float
    tail: Tail

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types; ``None`` for NaN."""
        return {key: _json(value) for key, value in asdict(self).items()}


def compare(
    first: Network, second: Network, samples: Sequence[Sample], tensors: Sequence[tuple[str, str, str]]
) -> list[TensorDifference]:
    """Run two networks on the same samples and compare the tensors that both have.

    Args:
        first: the reference.
        second: what is compared with it.
        samples: at least one.
        tensors: name, operator and node of each tensor of the float graph, in graph order.

    Raises:
        UsageError: there are no samples, no tensor that both can show, or one that has another shape.
    """
    common = set(first.tensors) & set(second.tensors)
    chosen = [item for item in tensors if item[0] in common]
    if not chosen or not samples:
        raise UsageError(
            f"{first.title} and {second.title} have no tensor in common" if samples else "there are no samples",
            hint="both must come from one build: edgeopt diff float bundle",
        )
    names = [name for name, _, _ in chosen]
    first.watch(names)
    second.watch(names)
    sums = {name: _Sums() for name in names}
    for sample in track(samples, total=len(samples), description="diff"):
        one, other = first.answers(sample), second.answers(sample)
        for name in names:
            if name in one and name in other:  # an input is the sample itself on both sides
                _check_shapes(name, one[name].shape, other[name].shape)
                sums[name].add(one[name], other[name], sample.name)
    return [sums[name].difference(name, operator, node) for name, operator, node in chosen if sums[name].count]


def _check_shapes(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other:
        raise UsageError(
            f"tensor {name!r} has shape {one} in one network and {other} in the other: these are not forms of one",
            hint="compare what one build made",
        )


class _Sums:
    """What is kept of one tensor: sums in float64 and counts, whatever the number of samples."""

    def __init__(self) -> None:
        self.count = 0
        self._power = self._noise = self._other_power = self._dot = self._error = 0.0
        self._worst, self._worst_sample = -1.0, ""
        self._range, self._other_range = (math.inf, -math.inf), (math.inf, -math.inf)
        self._magnitudes = np.zeros(_BINS + 2, np.int64)
        self._is_finite = True

    def add(self, one: NDArray[np.floating], other: NDArray[np.floating], sample: str) -> None:
        """Take in one sample."""
        a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
        self.count += a.size
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            self._is_finite, self._worst_sample = False, self._worst_sample or sample
            return
        error = b - a
        self._power += float(a @ a)
        self._other_power += float(b @ b)
        self._noise += float(error @ error)
        self._dot += float(a @ b)
        self._error += float(error.sum())
        worst = float(np.abs(error).max())
        if worst > self._worst:
            self._worst, self._worst_sample = worst, sample
        self._range = min(self._range[0], float(a.min())), max(self._range[1], float(a.max()))
        self._other_range = min(self._other_range[0], float(b.min())), max(self._other_range[1], float(b.max()))
        self._magnitudes += np.bincount(_bins(np.abs(a)), minlength=_BINS + 2)

    def difference(self, name: str, operator: str, node: str) -> TensorDifference:
        """Return the figures."""
        nan = math.nan
        fine = self._is_finite
        norms = math.sqrt(self._power * self._other_power)
        return TensorDifference(
            name=name,
            operator=operator,
            node=node,
            sqnr_db=_decibels(self._power, self._noise) if fine else nan,
            cosine=nan if not fine else self._dot / norms if norms else float(self._noise == 0),
            max_error=self._worst if fine else nan,
            worst_sample=self._worst_sample,
            mean_error=self._error / self.count if fine else nan,
            rms_error=math.sqrt(self._noise / self.count) if fine else nan,
            minimum=self._range[0] if fine else nan,
            maximum=self._range[1] if fine else nan,
            other_minimum=self._other_range[0] if fine else nan,
            other_maximum=self._other_range[1] if fine else nan,
            tail=self._tail(),
        )

    def _tail(self) -> Tail:
        largest = max(map(abs, self._range)) if math.isfinite(self._range[0]) else math.nan
        shares = np.cumsum(self._magnitudes) / max(int(self._magnitudes.sum()), 1)
        edges = [_edge(int(np.searchsorted(shares, share))) for share in _TAIL]
        median, p99, p999, p9999 = (min(edge, largest) for edge in edges)
        return Tail(median, p99, p999, p9999, largest)


def _bins(magnitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each magnitude; bin 0 is for zeros and what is next to nothing."""
    low, high = _LOG2_RANGE
    with np.errstate(divide="ignore"):
        place = (np.log2(magnitudes) - low) / (high - low) * _BINS
    return np.asarray(np.clip(np.floor(place) + 1, 0, _BINS + 1), np.int64)


def _edge(index: int) -> float:
    """Return the upper edge of a bin."""
    low, high = _LOG2_RANGE
    return 0.0 if index == 0 else float(2.0 ** (low + (high - low) * index / _BINS))


def _decibels(power: float, noise: float) -> float:
    if noise == 0.0:
        return MAX_SQNR_DB
    if power == 0.0:
        return -MAX_SQNR_DB
    return max(-MAX_SQNR_DB, min(MAX_SQNR_DB, 10.0 * math.log10(power / noise)))


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
