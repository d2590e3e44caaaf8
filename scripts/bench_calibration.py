"""Our calibration beside ONNX Runtime's own calibrators, and beside plain inference over the same samples.

The same float graph, the same samples held in memory, the same tensors, two threads each. A calibrator's time is what
its user waits for: preparing the graph, opening the session, the pass, and choosing the ranges. Plain inference is the
pass alone. Min/max is timed in turns with plain inference. The methods with histograms take long, and in ONNX Runtime
gigabytes: each runs once in a fresh process, ours and theirs in turn, which tells its time and its peak of memory, less
what a process needs that only loads the same packages and samples.

    python bench_calibration.py WAY model.onnx samples.npy INPUT    such a process; prints peak in bytes, and seconds
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from bench_figures import Figure
from bench_network import Network, NotMeasured, last_line
from bench_timing import interleaved, load, own_peak_bytes, ratio, run_watched, spread
from onnxruntime.quantization.calibrate import (
    CalibraterBase,
    CalibrationDataReader,
    EntropyCalibrater,
    MinMaxCalibrater,
    PercentileCalibrater,
)

from edgeopt.artifacts import FloatModel, TensorInfo
from edgeopt.calibrate.ranges import choose_ranges
from edgeopt.calibrate.statistics import calibrate
from edgeopt.quantize.placement import quantized_tensors
from edgeopt.quantize.scheme import ASYMMETRIC, SCHEMES
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import CalibrationSettings, QuantizeSettings

_PLAIN, _NOTHING = "plain inference", "nothing"
_THEIRS: Mapping[str, type[CalibraterBase]] = {
    "ONNX Runtime MinMax": MinMaxCalibrater,
    "ONNX Runtime Percentile": PercentileCalibrater,
    "ONNX Runtime Entropy": EntropyCalibrater,
}
_OURS = {f"edgeopt {method}": method for method in ("minmax", "percentile", "entropy", "mse", "auto")}
_PAIRS = (("edgeopt percentile", "ONNX Runtime Percentile"), ("edgeopt entropy", "ONNX Runtime Entropy"))
_ALONE = ("edgeopt mse", "edgeopt auto")
_ABOVE = "above loading packages and samples"


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands samples that are in memory to ONNX Runtime."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, object] | None:
        """Return the next sample's inputs, ``None`` at the end."""
        sample = next(self._samples, None)
        return None if sample is None else dict(sample.inputs)


def calibration_figures(network: Network, count: int, rounds: int) -> Iterator[Figure]:
    """Time min/max in turns with plain inference, and each other method in a process of its own."""
    samples = network.samples("calibration", min(count, network.loaded.recipe.calibration.num_samples))
    source = network.float_graph
    with tempfile.TemporaryDirectory() as scratch:
        yield from _minmax_figures(network.name, source, samples, rounds, Path(scratch))
        yield from _histogram_figures(network.name, _Processes(source, samples, Path(scratch)))


def _minmax_figures(
    network: str, source: FloatModel, samples: Sequence[Sample], rounds: int, scratch: Path
) -> Iterator[Figure]:
    ours, theirs = "edgeopt minmax", "ONNX Runtime MinMax"
    busy = load()
    ways = {way: action_of(way, source, samples, scratch) for way in (ours, theirs, _PLAIN)}
    taken = interleaved(ways, rounds=rounds)
    what = f"{len(samples)} samples, {len(observed_tensors(source))} tensors; {busy}"
    together = spread(taken[ours], taken[theirs])
    yield Figure("calibration", network, f"{ours} / {theirs}", ratio(taken[ours], taken[theirs]), "x", together)
    for way in (ours, theirs):
        remark = f"{taken[way].milliseconds / 1000:.2f} / {taken[_PLAIN].milliseconds / 1000:.2f} s; {what}"
        yield Figure("calibration", network, f"{way} / {_PLAIN}", ratio(taken[way], taken[_PLAIN]), "x", remark)


def _histogram_figures(network: str, processes: _Processes) -> Iterator[Figure]:
    for way in ("edgeopt minmax", "ONNX Runtime MinMax"):
        yield Figure("calibration", network, f"{way}, memory", processes.megabytes(way), "MB", _ABOVE)
    for ours, theirs in _PAIRS:
        seconds = {way: processes.seconds(way) for way in (ours, theirs)}
        memory = {way: processes.megabytes(way) for way in (ours, theirs)}
        times = f"{seconds[theirs]:.1f} / {seconds[ours]:.1f} s"
        yield Figure("calibration", network, f"{theirs} / {ours}", seconds[theirs] / seconds[ours], "x", times)
        sizes = f"{memory[ours]:.0f} / {memory[theirs]:.0f} MB {_ABOVE}"
        yield Figure("calibration", network, f"{ours} / {theirs}, memory", memory[ours] / memory[theirs], "x", sizes)
    for way in _ALONE:
        remark = f"{processes.megabytes(way):.0f} MB {_ABOVE}"
        yield Figure("calibration", network, way, processes.seconds(way), "s", remark)


def observed_tensors(source: FloatModel) -> tuple[str, ...]:
    """Return the tensors that a build observes: those that some scheme quantizes."""
    graph = ir.load(source.path).graph
    named = (name for scheme in SCHEMES.values() for name in quantized_tensors(graph, scheme, QuantizeSettings()))
    return tuple(dict.fromkeys(named))


def action_of(way: str, source: FloatModel, samples: Sequence[Sample], scratch: Path) -> Callable[[], object]:
    """Return what is timed of one way."""
    tensors = observed_tensors(source)
    if way in _OURS:
        return lambda: _ours(_OURS[way], source, tensors, samples, scratch)
    if way in _THEIRS:
        return lambda: _theirs(_THEIRS[way], source, tensors, samples, scratch / "augmented.onnx")
    session = OnnxSession(source.path)
    return lambda: [session.run(sample.inputs) for sample in samples if way == _PLAIN]


def _ours(method: str, source: FloatModel, tensors: Sequence[str], samples: Sequence[Sample], scratch: Path) -> None:
    statistics = calibrate(source, tensors, samples, len(samples), scratch, histograms=method != "minmax")
    settings = CalibrationSettings("samples", method=method)  # type: ignore[arg-type]
    choose_ranges(source, statistics, ASYMMETRIC.activation_params, settings, scratch)


def _theirs(
    calibrator_class: type[CalibraterBase],
    source: FloatModel,
    tensors: Sequence[str],
    samples: Sequence[Sample],
    augmented: Path,
) -> None:
    """Run ONNX Runtime's calibrator, told to observe the tensors that ours observes instead of all."""

    class SameTensors(calibrator_class):  # type: ignore[misc,valid-type]
        def select_tensors_to_calibrate(self, model: object) -> tuple[set[str], dict[str, object]]:
            _, described = super().select_tensors_to_calibrate(model)
            return set(tensors), described

    calibrator = SameTensors(source.path, augmented_model_path=str(augmented))
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(_Reader(samples))
    calibrator.compute_data()


class _Processes:
    """One fresh process for each way; what it took is measured once, when first asked for."""

    def __init__(self, source: FloatModel, samples: Sequence[Sample], scratch: Path) -> None:
        (self._name,) = samples[0].inputs
        self._model, self._stored = source.path, scratch / "samples.npy"
        self._measured: dict[str, tuple[int, float]] = {}
        np.save(self._stored, np.stack([sample.inputs[self._name] for sample in samples]))

    def seconds(self, way: str) -> float:
        """Return how long a way took, without loading packages and samples."""
        return self._run(way)[1]

    def megabytes(self, way: str) -> float:
        """Return a way's peak of memory above that of a process that loads packages and samples only."""
        return (self._run(way)[0] - self._run(_NOTHING)[0]) / 1e6

    def _run(self, way: str) -> tuple[int, float]:
        if own_peak_bytes() is None:
            raise NotMeasured("this system has no /proc")
        if way not in self._measured:
            done = run_watched([sys.executable, __file__, way, str(self._model), str(self._stored), self._name])
            if done.exit_code != 0:
                raise NotMeasured(f"{way} in a process of its own: {last_line(done.errors)}")
            peak, seconds = last_line(done.output).split()  # ONNX Runtime prints what it does
            self._measured[way] = int(peak), float(seconds)
        return self._measured[way]


def _main(way: str, model: str, stored: str, name: str) -> None:
    samples = [Sample(str(index), {name: array}) for index, array in enumerate(np.load(stored))]
    source = FloatModel(Path(model), (TensorInfo(name, "float32", samples[0].inputs[name].shape),), ())
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        action = action_of(way, source, samples, Path(scratch))
        start = time.perf_counter()
        action()
        seconds = time.perf_counter() - start
    sys.stdout.write(f"\n{own_peak_bytes()} {seconds}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
