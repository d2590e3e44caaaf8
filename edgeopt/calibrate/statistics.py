"""One streaming pass over the float graph: samples in, where each tensor's values lie out, in constant memory.

Only the tensors that some scheme quantizes become outputs of the graph, so that ONNX Runtime keeps its fusions; the
reduction is NumPy's. Every sample is run by itself. Measured on EfficientNet-Lite0 by ``scripts/bench``, which prints
it beside ONNX Runtime's own.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.artifacts import FloatModel, TensorRange, canonical_json
from edgeopt.calibrate.histogram import Distribution, distribution_of
from edgeopt.calibrate.observers import HistogramObserver, MinMaxObserver
from edgeopt.calibrate.plausibility import Survey
from edgeopt.dataset import sample_digest
from edgeopt.errors import DataError
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import InputSettings
from edgeopt.stage import track

# How many samples are kept whole, to try on them what a range costs: those with the smallest digests.
NUM_PROBES = 8

# A largest value that is so many times what nearly all values stay below is no part of what the network computes.
_OUTLYING, _USUAL = 10_000, 0.9999

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class TensorStatistics:
    """What was seen of one tensor: its range, and how often which bin (see :mod:`.histogram`); all of them or none."""

    seen: TensorRange
    codes: NDArray[np.uint16]
    counts: NDArray[np.int64]

    def distribution(self, *, merged_bits: int = 0) -> Distribution:
        """Return the histogram by value."""
        return distribution_of(self.codes, self.counts, self.seen.minimum, self.seen.maximum, merged_bits=merged_bits)


@dataclass(frozen=True)
class Statistics:
    """What was seen of each tensor and on which samples, and some of the samples themselves; files in ``folder``.

    ``warnings`` say what cannot be right with the samples.
    """

    folder: Path
    tensors: Mapping[str, TensorStatistics]
    digests: tuple[str, ...]
    outputs: tuple[str, ...]
    warnings: tuple[str, ...]

    def probes(self) -> Iterator[Arrays]:
        """Yield the samples that were kept, in the order of their digests."""
        with np.load(self.folder / "probes.npz", allow_pickle=False) as stored:
            arrays = dict(stored)
        for index in range(len(next(iter(arrays.values())))):
            yield {name: array[index] for name, array in arrays.items()}


def calibrate(
    source: FloatModel,
    tensors: Sequence[str],
    samples: Iterable[Sample],
    num_samples: int,
    out_dir: Path,
    *,
    inputs: Mapping[str, InputSettings] | None = None,
    histograms: bool = True,
) -> Statistics:
    """Observe ``tensors`` and all inputs and outputs on every sample, in whatever order; integers are left alone.

    Args:
        source: the float graph.
        tensors: names of tensors in it, those that some scheme quantizes.
        samples: checked samples (see :func:`edgeopt.dataset.checked_samples`).
        num_samples: how many there are, for the progress bar.
        out_dir: where the statistics are written.
        inputs: what the samples are declared to be; without it nothing is warned about.
        histograms: count every value too; without them there is only a minimum and a maximum.

    Raises:
        DataError: if there are no samples, a tensor is empty or not finite, or an input never changes.
    """
    border = (tensor.name for tensor in (*source.inputs, *source.outputs) if tensor.dtype == "float32")
    observer_class = HistogramObserver if histograms else MinMaxObserver
    observers = {name: observer_class() for name in dict.fromkeys((*tensors, *border))}
    session = _observing_session(source, tuple(observers))
    digests: list[str] = []
    probes = _Probes()
    survey = Survey(inputs) if inputs else None
    passing = track(survey.passing(samples) if survey else samples, total=num_samples, description="calibrate")
    for sample, answers in _answered(session, passing):
        digests.append(sample_digest(sample))
        probes.offer(digests[-1], sample)
        for name, observer in observers.items():
            values = sample.inputs[name] if name in sample.inputs else answers[name]
            observer.update(_floating(values), name, sample.name)
    if not digests:
        raise DataError("calibration needs at least one sample, got none")
    found = {name: _summary(observers[name]) for name in sorted(observers)}
    _refuse_constant_inputs(source, found)
    outputs = tuple(tensor.name for tensor in source.outputs)
    warnings = (*(survey.findings() if survey else ()), *_outliers(found))
    made = Statistics(out_dir, found, tuple(sorted(digests)), outputs, warnings)
    _write(made)
    if histograms:
        probes.write(out_dir / "probes.npz")
    return made


def _answered(session: OnnxSession, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Mapping[str, Any]]]:
    """Yield each sample with the tensors that it gives, while the next one runs: counting waits for no inference."""
    with ThreadPoolExecutor(1) as pool:
        ahead: tuple[Sample, Future[Any]] | None = None
        for sample in samples:
            running = sample, pool.submit(session.run, dict(sample.inputs))
            if ahead is not None:
                yield ahead[0], ahead[1].result()
            ahead = running
        if ahead is not None:
            yield ahead[0], ahead[1].result()


def read_statistics(folder: Path) -> Statistics:
    """Read what :func:`calibrate` wrote; nothing is unpickled."""
    facts = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    with np.load(folder / "histograms.npz", allow_pickle=False) as stored:
        codes, counts = stored["codes"], stored["counts"]
    tensors, start = {}, 0
    for item in facts["tensors"]:
        end = start + item["num_bins"]
        seen = TensorRange(float.fromhex(item["minimum"]), float.fromhex(item["maximum"]))
        tensors[item["name"]] = TensorStatistics(seen, codes[start:end], counts[start:end])
        start = end
    return Statistics(folder, tensors, *(tuple(facts[key]) for key in ("samples", "outputs", "warnings")))


class _Probes:
    """Keeps the few samples with the smallest digests: the same ones, in whatever order samples come."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str, Sample]] = []

    def offer(self, digest: str, sample: Sample) -> None:
        """Keep a sample, if its digest is among the smallest so far."""
        if all(digest != kept for _, kept, _ in self._kept):
            heapq.heappush(self._kept, (-int(digest, 16), digest, sample))
            if len(self._kept) > NUM_PROBES:
                heapq.heappop(self._kept)

    def write(self, path: Path) -> None:
        """Write the samples, each input ``(N, 1, ...)``."""
        samples = [sample for _, _, sample in sorted(self._kept, key=lambda item: item[1])]
        arrays = {name: np.stack([sample.inputs[name] for sample in samples]) for name in sorted(samples[0].inputs)}
        np.savez(path, **arrays)  # type: ignore[arg-type]


def _write(statistics: Statistics) -> None:
    facts = [
        {
            "name": name,
            "minimum": item.seen.minimum.hex(),  # a float in hexadecimal loses no bit
            "maximum": item.seen.maximum.hex(),
            "num_bins": len(item.codes),
        }
        for name, item in statistics.tensors.items()
    ]
    content = {
        "tensors": facts,
        "samples": statistics.digests,
        "outputs": statistics.outputs,
        "warnings": statistics.warnings,
    }
    (statistics.folder / "statistics.json").write_text(canonical_json(content), encoding="utf-8")
    np.savez_compressed(
        statistics.folder / "histograms.npz",
        codes=np.concatenate([item.codes for item in statistics.tensors.values()]),
        counts=np.concatenate([item.counts for item in statistics.tensors.values()]),
    )


def _summary(observer: MinMaxObserver) -> TensorStatistics:
    counts = observer.histogram.counts if isinstance(observer, HistogramObserver) else np.zeros(0, np.int64)
    codes = np.flatnonzero(counts)
    return TensorStatistics(observer.range(), codes.astype(np.uint16), counts[codes])


def _observing_session(source: FloatModel, tensors: Sequence[str]) -> OnnxSession:
    """Open the float graph with every observed tensor as an additional output."""
    model = onnx.load(str(source.path), load_external_data=False)
    present = {value.name for value in (*model.graph.input, *model.graph.output)}
    described = {value.name: value for value in model.graph.value_info}
    for name in tensors:
        if name not in present:
            if name not in described:
                raise DataError(f"the float graph has no tensor {name!r} to observe")
            model.graph.output.append(described[name])
    return OnnxSession(model.SerializeToString(), external_data_folder=source.path.parent)


def _outliers(found: Mapping[str, TensorStatistics]) -> Iterator[str]:
    """Yield what is wrong with tensors whose few largest values leave no steps of int8 for all others."""
    for name, item in found.items():
        if not len(item.counts):
            continue
        largest = max(-item.seen.minimum, item.seen.maximum)
        usual = item.distribution().magnitude(_USUAL)
        if largest > _OUTLYING * usual:
            yield (
                f"tensor {name!r} reaches {largest:.3g}, but {_USUAL:.2%} of its values lie within {usual:.3g}: in "
                "int8 with its whole range these are all 0; look at the samples, or clip with another method"
            )


def _refuse_constant_inputs(source: FloatModel, found: Mapping[str, TensorStatistics]) -> None:
    for tensor in source.inputs:
        item = found.get(tensor.name)
        if item is not None and item.seen.minimum == item.seen.maximum:
            raise DataError(
                f"input {tensor.name!r} is {item.seen.minimum:g} everywhere in every calibration sample",
                hint="ranges from one black image cost an EfficientNet-Lite0 all of its accuracy: give real samples",
            )


def _floating(values: NDArray[np.generic]) -> NDArray[np.floating]:
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"only floating-point tensors are observed, got {values.dtype}")
    return values  # type: ignore[return-value]
