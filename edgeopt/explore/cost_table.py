"""What layers cost on a target, measured one by one, and what a network will cost that was not built yet.

    predicted = what a call takes + the sum over its layers

A layer that was measured costs what was measured. Of another one, the cost per multiply-accumulate is interpolated
between the measured layers of its family that are most like it: the weights are the inverse squares of the distances in
channels and positions, on a logarithmic scale. Source: Shepard: A two-dimensional interpolation function for
irregularly-spaced data, 1968; tables of latencies for searches: Cai et al.: ProxylessNAS, 2019, arXiv 1812.00332.

What a table does not know: operators that are no layers (additions, activations that no kernel absorbs), and what the
caches of a board make of layers that follow one another. So its error against whole networks is part of every search.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgeopt.artifacts import canonical_json
from edgeopt.atomic import write_text
from edgeopt.errors import UsageError
from edgeopt.explore.layers import Layer

_SCHEMA_VERSION = 1
_NUM_NEIGHBOURS = 4

Measure = Callable[[Sequence[Layer]], tuple[float, list[float]]]
"""Returns what a call of a model without layers costs, and what each layer costs on top."""


@dataclass(frozen=True)
class Origin:
    """What a table holds and where it was measured; tables of two origins are never mixed."""

    figure: str
    device: str
    runtime: str


class CostTable:
    """Measured costs of layers; it grows when a layer of a new family is asked about."""

    def __init__(self, origin: Origin, measure: Measure, path: Path) -> None:
        self.origin = origin
        self._measure = measure
        self._path = path
        self._call = 0.0
        self._points: dict[Layer, float] = {}
        if path.is_file():
            self._read()

    def __len__(self) -> int:
        return len(self._points)

    def cover(self, layers: Iterable[Layer], max_points: int) -> None:
        """Measure layers, at most so many that the table has ``max_points``, those first that are most unlike the rest.

        A layer of a family that the table does not have is measured in any case.
        """
        missing = sorted(set(layers) - set(self._points))
        chosen = _spread(missing, list(self._points), max_points)
        if chosen:
            self._call, costs = self._measure(chosen)
            self._points |= dict(zip(chosen, costs, strict=True))
            self._write()

    def predict(self, layers: Sequence[Layer]) -> float:
        """Return what an inference of a network with these layers costs."""
        self.cover(layers, len(self._points))
        return self._call + sum(map(self._cost, layers))

    def _cost(self, layer: Layer) -> float:
        if layer in self._points:
            return self._points[layer]
        family = [other for other in self._points if other.family == layer.family]
        nearest = sorted(family, key=lambda other: (_distance(layer, other), other))[:_NUM_NEIGHBOURS]
        weights = [_distance(layer, other) ** -2 for other in nearest]
        per_work = sum(w * self._points[other] / other.work for w, other in zip(weights, nearest, strict=True))
        return layer.work * per_work / sum(weights)

    def _write(self) -> None:
        points = [{**asdict(layer), "cost": cost} for layer, cost in sorted(self._points.items())]
        content = {
            "schema_version": _SCHEMA_VERSION,
            "measured": asdict(self.origin),
            "call": self._call,
            "points": points,
        }
        write_text(self._path, canonical_json(content))

    def _read(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema_version is {content['schema_version']}, expected {_SCHEMA_VERSION}")
            origin, self._call = Origin(**content["measured"]), float(content["call"])
            self._points = {_layer_from(point): float(point["cost"]) for point in content["points"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._path} is not a table of costs: {error}", hint="remove it, and it is measured anew"
            ) from error
        if origin != self.origin:
            raise UsageError(
                f"{self._path} has {_named(origin)}, this search needs {_named(self.origin)}",
                hint="give another file with --table; it is measured if it is not there",
            )


@dataclass(frozen=True)
class TableError:
    """How far predictions were from whole networks that were measured afterwards.

    ``r2`` is the share of the variance that is explained, 1 at best; ``None`` for fewer than three networks. The
    relative errors are those of the absolute differences.
    """

    num_networks: int
    r2: float | None
    mean_relative_error: float
    worst_relative_error: float


def table_error(pairs: Sequence[tuple[float, float]]) -> TableError | None:
    """Compare predicted with measured costs, pair by pair; ``None`` without any."""
    if not pairs:
        return None
    relative = [abs(predicted - measured) / measured for predicted, measured in pairs]
    mean = sum(measured for _, measured in pairs) / len(pairs)
    total = sum((measured - mean) ** 2 for _, measured in pairs)
    left = sum((measured - predicted) ** 2 for predicted, measured in pairs)
    r2 = 1 - left / total if len(pairs) > 2 and total > 0 else None
    return TableError(len(pairs), r2, sum(relative) / len(relative), max(relative))


def _spread(missing: Sequence[Layer], known: Sequence[Layer], max_points: int) -> list[Layer]:
    """Return the layers to measure: one of each new family, then again and again the one farthest from all others."""
    chosen: list[Layer] = []
    families = {layer.family for layer in known}
    for layer in missing:
        if layer.family not in families:
            families.add(layer.family)
            chosen.append(layer)
    waiting = {layer: _nearest(layer, [*known, *chosen]) for layer in missing if layer not in chosen}
    while waiting and len(known) + len(chosen) < max_points:
        farthest = max(waiting, key=lambda layer: (waiting[layer], layer))
        del waiting[farthest]
        chosen.append(farthest)
        for layer in waiting:
            if layer.family == farthest.family:
                waiting[layer] = min(waiting[layer], _distance(layer, farthest))
    return chosen


def _nearest(layer: Layer, others: Sequence[Layer]) -> float:
    return min(_distance(layer, other) for other in others if other.family == layer.family)


def _distance(one: Layer, other: Layer) -> float:
    """Return how unlike two layers of a family are: 1 is twice as many channels, or positions."""
    return math.dist(_coordinates(one), _coordinates(other)) or 1e-6  # layers that differ in nothing that counts


def _coordinates(layer: Layer) -> tuple[float, float, float]:
    inputs, outputs = layer.blocks
    return math.log2(inputs), math.log2(outputs), math.log2(math.prod(layer.out_size))


def _layer_from(point: Mapping[str, Any]) -> Layer:
    values: dict[str, Any] = {item.name: point[item.name] for item in fields(Layer)}
    pairs = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Layer(**{**values, **pairs})


def _named(origin: Origin) -> str:
    return f"{origin.figure} of {origin.runtime} on {origin.device}"
