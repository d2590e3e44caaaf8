"""Runs the float graph on samples and looks at tensors inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.correct.channels import ChannelGroup
from edgeopt.correct.noise import ChannelStatistics
from edgeopt.errors import QuantizationError
from edgeopt.session import OnnxSession

Feeds = Mapping[str, NDArray[np.generic]]

_FURTHEST = 1e6  # what is expected of a channel that is usually 0, over what was seen


def inside(path: Path, tensors: Sequence[str], samples: Sequence[Feeds]) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Yield what each of ``tensors`` holds on each sample.

    Raises:
        QuantizationError: if the graph has no tensor of a name.
    """
    model = onnx.load(str(path), load_external_data=False)
    described = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    if missing := [name for name in tensors if name not in described]:
        raise QuantizationError(f"the float graph has no tensor {missing[0]!r} to look at")
    del model.graph.output[:]
    model.graph.output.extend(described[name] for name in dict.fromkeys(tensors))
    session = OnnxSession(model.SerializeToString(), external_data_folder=path.parent)
    for sample in samples:
        yield session.run(sample)


def channel_statistics(
    path: Path, groups: Sequence[ChannelGroup], samples: Sequence[Feeds]
) -> dict[str, ChannelStatistics]:
    """Return the statistics of every observed tensor of the groups, by name."""
    axes = {name: group.axis for group in groups for name in group.observed()}
    if not axes:
        return {}
    largest: dict[str, list[NDArray[np.float64]]] = {name: [] for name in axes}
    squares: dict[str, NDArray[np.float64]] = {}
    for answers in inside(path, list(axes), samples):
        for name, axis in axes.items():
            by_channel = np.moveaxis(answers[name], axis, 0).reshape(answers[name].shape[axis], -1)
            largest[name].append(np.abs(by_channel).max(axis=1).astype(np.float64))
            square = np.square(by_channel.astype(np.float64)).mean(axis=1)
            squares[name] = squares[name] + square if name in squares else square
    return {name: _summary(np.array(largest[name]), squares[name] / len(samples)) for name in axes}


def _summary(largest: NDArray[np.float64], mean_square: NDArray[np.float64]) -> ChannelStatistics:
    """Sum up the largest magnitudes ``(samples, C)``."""
    most, usual = largest.max(axis=0), np.median(largest, axis=0)
    expected = most * np.clip(most / np.maximum(usual, most / _FURTHEST + 1e-30), 1.0, _FURTHEST)
    return ChannelStatistics(most, mean_square, expected)
