"""From statistics to ranges: which values a scheme's int8 shall hold, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeopt.affine import QuantParams
from edgeopt.artifacts import FloatModel, Ranges, TensorRange, canonical_json, read_ranges
from edgeopt.calibrate.clipping import ParamsOf, least_divergence, least_squared_error, percentile
from edgeopt.calibrate.reaction import Reactions
from edgeopt.calibrate.statistics import Statistics, TensorStatistics
from edgeopt.settings import CalibrationSettings
from edgeopt.stage import track

# What ``auto`` chooses among. The first one stays unless another causes less error by this factor.
_TRIED = ("minmax", "percentile", "entropy", "mse")
_WORTH = 0.9
# Scales and zero points so near to each other that trying both would tell nothing.
_SAME_SCALE, _SAME_ZERO_POINT = 0.02, 2
# Neighbouring bins are joined for searches: 3 % of a value is as near as a threshold has to be.
_SEARCHED_BITS = 2


@dataclass(frozen=True)
class Choice:
    """One tensor's range, and the method that found it."""

    range: TensorRange
    method: str


@dataclass(frozen=True)
class _Chooser:
    """Finds ranges for one scheme: ``params_of`` is how it turns a range into scale and zero point."""

    params_of: ParamsOf
    percentile: float

    def by(self, method: str, item: TensorStatistics) -> Choice:
        """Return what one method chooses."""
        return Choice(_METHODS[method](item, self), method)

    def by_least_error(self, item: TensorStatistics, errors_of: Callable[[list[QuantParams]], list[float]]) -> Choice:
        """Return what causes least error, of what all methods choose."""
        tried: list[tuple[Choice, QuantParams]] = []
        for choice in (self.by(method, item) for method in _TRIED):
            params = self.params_of(choice.range.minimum, choice.range.maximum)
            if not any(_alike(params, other) for _, other in tried):
                tried.append((choice, params))
        errors = errors_of([params for _, params in tried]) if len(tried) > 1 else [0.0]
        least = errors.index(min(errors))
        return tried[least if errors[least] < _WORTH * errors[0] else 0][0]


_METHODS: Mapping[str, Callable[[TensorStatistics, _Chooser], TensorRange]] = {
    "minmax": lambda item, chooser: item.seen,
    "percentile": lambda item, chooser: percentile(item.distribution(), chooser.percentile / 100),
    "entropy": lambda item, chooser: least_divergence(item.distribution(merged_bits=_SEARCHED_BITS), chooser.params_of),
    "mse": lambda item, chooser: least_squared_error(item.distribution(merged_bits=_SEARCHED_BITS), chooser.params_of),
}


def choose_ranges(
    source: FloatModel, statistics: Statistics, params_of: ParamsOf, settings: CalibrationSettings, out_dir: Path
) -> Ranges:
    """Choose a range for every tensor by the recipe's method and write ``ranges.json``.

    What the network answers is never clipped: a class is told by the largest score.

    Args:
        source: the float graph.
        statistics: of its tensors, with histograms unless the method is ``minmax``.
        params_of: how the scheme turns a range into scale and zero point.
        settings: method and percentile.
        out_dir: where to write.
    """
    chooser = _Chooser(params_of, settings.percentile)
    reactions = Reactions(source, statistics.probes()) if settings.method == "auto" else None

    def choice(name: str, item: TensorStatistics) -> Choice:
        if name in statistics.outputs:
            return chooser.by("minmax", item)
        if reactions is None:
            return chooser.by(settings.method, item)
        return chooser.by_least_error(item, lambda candidates: reactions.errors(name, candidates))

    tensors = track(statistics.tensors.items(), total=len(statistics.tensors), description="choose ranges")
    return _write({name: choice(name, item) for name, item in tensors}, statistics, out_dir / "ranges.json")


def _alike(one: QuantParams, other: QuantParams) -> bool:
    near = abs(one.scale / other.scale - 1) < _SAME_SCALE
    return near and abs(one.zero_point - other.zero_point) <= _SAME_ZERO_POINT


def _write(found: Mapping[str, Choice], statistics: Statistics, path: Path) -> Ranges:
    tensors = {
        name: {
            "chosen": _hexadecimal(item.range),
            "observed": _hexadecimal(statistics.tensors[name].seen),
            "method": item.method,
        }
        for name, item in found.items()
    }
    content = {"tensors": tensors, "num_samples": len(statistics.digests)}
    path.write_text(canonical_json(content), encoding="utf-8")
    return read_ranges(path)


def _hexadecimal(item: TensorRange) -> list[str]:
    return [item.minimum.hex(), item.maximum.hex()]
