"""From statistics to ranges: which values a scheme's int8 shall hold, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeopt.artifacts import FloatModel, Ranges, TensorRange, canonical_json, read_ranges
from edgeopt.calibrate.clipping import ParamsOf, least_divergence, least_squared_error, percentile
from edgeopt.calibrate.reaction import Reactions
from edgeopt.calibrate.statistics import Statistics, TensorStatistics
from edgeopt.settings import CalibrationSettings

# What ``auto`` chooses among. The first one stays unless another causes less error by this factor.
_TRIED = ("minmax", "percentile", "entropy", "mse")
_WORTH = 0.9
# Neighbouring bins are joined for searches: 3 % of a value is as near as a threshold has to be.
_SEARCHED_BITS = 2


@dataclass(frozen=True)
class Choice:
    """One tensor's range, the method that found it, and the share of the values that it clips."""

    range: TensorRange
    method: str
    clipped_share: float


def choose_ranges(
    source: FloatModel, statistics: Statistics, params_of: ParamsOf, settings: CalibrationSettings, out_dir: Path
) -> Ranges:
    """Choose a range for every tensor by the recipe's method and write ``ranges.json``.

    What the network answers is never clipped: the largest score is what a class is told by.

    Args:
        source: the float graph.
        statistics: of its tensors, with histograms unless the method is ``minmax``.
        params_of: how the scheme turns a range into scale and zero point.
        settings: method and percentile.
        out_dir: where to write.
    """
    if settings.method == "auto":
        chosen = _least_error(source, statistics, params_of, settings)
    else:
        chosen = dict.fromkeys(statistics.tensors, settings.method)
    found = {
        name: _range(item, "minmax" if name in statistics.outputs else chosen[name], params_of, settings)
        for name, item in statistics.tensors.items()
    }
    return _write(found, statistics, out_dir / "ranges.json")


def _range(item: TensorStatistics, method: str, params_of: ParamsOf, settings: CalibrationSettings) -> Choice:
    if method == "minmax":
        return Choice(item.seen, method, 0.0)
    found = _METHODS[method](item, params_of, settings)
    return Choice(found, method, item.distribution().clipped_share(found.minimum, found.maximum))


_METHODS: Mapping[str, Callable[[TensorStatistics, ParamsOf, CalibrationSettings], TensorRange]] = {
    "minmax": lambda item, params_of, settings: item.seen,
    "percentile": lambda item, params_of, settings: percentile(item.distribution(), settings.percentile / 100),
    "entropy": lambda item, params_of, settings: least_divergence(
        item.distribution(merged_bits=_SEARCHED_BITS), params_of
    ),
    "mse": lambda item, params_of, settings: least_squared_error(
        item.distribution(merged_bits=_SEARCHED_BITS), params_of
    ),
}


def _least_error(
    source: FloatModel, statistics: Statistics, params_of: ParamsOf, settings: CalibrationSettings
) -> dict[str, str]:
    """Return the method for each tensor whose range disturbs the tensor's readers least."""
    reactions = Reactions(source, statistics.tensors)
    probes = list(statistics.probes())
    chosen = dict.fromkeys(statistics.tensors, "minmax")
    least: dict[str, float] = {}
    for method in _TRIED:
        ranges = {name: _METHODS[method](statistics.tensors[name], params_of, settings) for name in reactions.tensors}
        params = {name: params_of(item.minimum, item.maximum) for name, item in ranges.items()}
        for name, error in reactions.errors(params, probes).items():
            if name not in least or error < _WORTH * least[name]:
                chosen[name], least[name] = method, error
    return chosen


def _write(found: Mapping[str, Choice], statistics: Statistics, path: Path) -> Ranges:
    tensors = {
        name: {
            "chosen": [item.range.minimum.hex(), item.range.maximum.hex()],
            "observed": [statistics.tensors[name].seen.minimum.hex(), statistics.tensors[name].seen.maximum.hex()],
            "method": item.method,
            "clipped_share": item.clipped_share,
        }
        for name, item in found.items()
    }
    content = {"tensors": tensors, "num_samples": len(statistics.digests)}
    path.write_text(canonical_json(content), encoding="utf-8")
    return read_ranges(path)
