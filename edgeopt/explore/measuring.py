"""Measures layers one by one on a target: exact instructions on an emulated CPU, or milliseconds on this machine.

What a call itself takes is measured with a layer that does next to nothing, and taken off all others.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from edgeopt import latency
from edgeopt.devices.instructions import count_each
from edgeopt.devices.qemu import Emulation, QemuDevice
from edgeopt.explore.cost_table import CostTable, Measure, Origin
from edgeopt.explore.figures import COUNTED_IN, COUNTED_ON
from edgeopt.explore.layers import Layer
from edgeopt.explore.single_layer import as_tflite
from edgeopt.stage import stage, track
from edgeopt.verdict import open_quietly

_TIMEOUT_S = 600.0
_NOTHING = Layer("max_pool", 1, 1, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1, (1, 1), (1, 1))

_ROUNDS, _CALLS = 15, 20
"""The layers take turns, so that what else the machine does hits all alike; the median of the rounds forgets it."""


def open_table(figure: str, path: Path) -> CostTable:
    """Return the table of ``instructions`` on an emulated Raspberry Pi 4, or of ``latency_ms`` on this machine.

    Raises:
        MissingDependencyError: emulation is not set up.
        UsageError: the file at ``path`` is no such table.
    """
    if figure == "instructions":
        emulation = Emulation.load()
        device, version = QemuDevice(COUNTED_ON, emulation), emulation.runtimes[COUNTED_IN][COUNTED_IN]
        measure: Measure = partial(_instructions, device)
        where = device.name
    else:
        measure, where, version = _milliseconds, "this machine, one thread", metadata.version(COUNTED_IN)
    return CostTable(Origin(figure, where, f"{COUNTED_IN} {version}"), measure, path)


def _instructions(device: QemuDevice, layers: Sequence[Layer]) -> tuple[float, list[float]]:
    with stage("cost table"), tempfile.TemporaryDirectory(prefix="edgeopt.", dir="/tmp") as folder:
        counts = count_each(device, _files(layers, Path(folder)), COUNTED_IN, _TIMEOUT_S)
    return _without_the_call(list(map(float, counts)))


def _milliseconds(layers: Sequence[Layer]) -> tuple[float, list[float]]:
    with stage("cost table"), tempfile.TemporaryDirectory(prefix="edgeopt.") as folder:
        models = [open_quietly(path, "tflite", COUNTED_IN, threads=1)[0] for path in _files(layers, Path(folder))]
        calls = [partial(model, _zeros(layer)) for model, layer in zip(models, (_NOTHING, *layers), strict=True)]
        rounds = [
            [statistics.median(latency.run_for(call, 0, _CALLS)) for call in calls]
            for _ in track(range(_ROUNDS), total=_ROUNDS, description="cost table")
        ]
    return _without_the_call([statistics.median(times) for times in zip(*rounds, strict=True)])


def _without_the_call(costs: Sequence[float]) -> tuple[float, list[float]]:
    call, *of_layers = costs
    return call, [max(0.0, cost - call) for cost in of_layers]


def _files(layers: Sequence[Layer], folder: Path) -> list[Path]:
    """Write a model of nothing, then one a layer; names have one length, see :func:`count_each`."""
    files = [folder / f"{index:05}.tflite" for index in range(1 + len(layers))]
    for path, layer in zip(files, (_NOTHING, *layers), strict=True):
        path.write_bytes(as_tflite(layer))
    return files


def _zeros(layer: Layer) -> dict[str, np.ndarray]:
    rows = (layer.in_size[1],) if layer.kind == "linear" else (1, *layer.in_size)
    return {"x": np.zeros((*rows, layer.in_channels), np.int8)}
