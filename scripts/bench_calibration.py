"""Our min/max calibration beside ONNX Runtime's own, both against plain inference over the same samples.

The same float graph, the same samples held in memory, the same tensors, two threads each. A calibrator's time is what
its user waits for: preparing the graph, opening the session, the pass. Plain inference is the pass alone. Each peak of
memory is that of a fresh process, less what one needs that only loads the same packages and samples.

    python bench_calibration.py WAY model.onnx samples.npy INPUT    such a process; prints its peak in bytes
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from bench_figures import Figure
from bench_network import Network, NotMeasured, last_line
from bench_timing import interleaved, load, own_peak_bytes, ratio, run_watched, spread
from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

from edgeopt.artifacts import FloatModel, TensorInfo
from edgeopt.calibrate.statistics import calibrate
from edgeopt.quantize.placement import quantized_tensors
from edgeopt.quantize.scheme import SCHEMES
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import QuantizeSettings

_OURS, _THEIRS, _PLAIN, _NOTHING = "edgeopt", "ONNX Runtime MinMax", "plain inference", "nothing"


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands samples that are in memory to ONNX Runtime."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, object] | None:
        """Return the next sample's inputs, ``None`` at the end."""
        sample = next(self._samples, None)
        return None if sample is None else dict(sample.inputs)


class _SameTensors(MinMaxCalibrater):  # type: ignore[misc]
    """ONNX Runtime's calibrator, told to observe the tensors that ours observes instead of all."""

    def __init__(self, tensors: Sequence[str], model: Path, augmented: Path) -> None:
        super().__init__(model, augmented_model_path=str(augmented))
        self._tensors = set(tensors)

    def select_tensors_to_calibrate(self, model: object) -> tuple[set[str], dict[str, object]]:
        """Return our tensors in place of all."""
        _, described = super().select_tensors_to_calibrate(model)
        return self._tensors, described


def calibration_figures(network: Network, count: int, rounds: int) -> Iterator[Figure]:
    """Time the three ways in turns, and measure each one's memory in a process of its own."""
    samples = network.samples("calibration", min(count, network.loaded.recipe.calibration.num_samples))
    source = network.float_graph
    with tempfile.TemporaryDirectory() as scratch:
        busy = load()
        ways = {way: action_of(way, source, samples, Path(scratch)) for way in (_OURS, _THEIRS, _PLAIN)}
        taken = interleaved(ways, rounds=rounds)
        peaks = _peaks(source, samples, Path(scratch))

    def figure(name: str, value: float | None, unit: str, remark: str = "") -> Figure:
        return Figure("calibration", network.name, name, value, unit, remark)

    what = f"{len(samples)} samples, {len(observed_tensors(source))} tensors; {busy}"
    yield figure(f"{_OURS} / {_THEIRS}", ratio(taken[_OURS], taken[_THEIRS]), "x", spread(taken[_OURS], taken[_THEIRS]))
    for way in (_OURS, _THEIRS):
        remark = f"{taken[way].milliseconds / 1000:.2f} / {taken[_PLAIN].milliseconds / 1000:.2f} s; {what}"
        yield figure(f"{way} / {_PLAIN}", ratio(taken[way], taken[_PLAIN]), "x", remark)
    for way in (_OURS, _THEIRS, _PLAIN):
        more = None if peaks is None else (peaks[way] - peaks[_NOTHING]) / 1e6
        remark = "above loading packages and samples" if peaks else "this system has no /proc"
        yield figure(f"{way}, memory", more, "MB", remark)


def observed_tensors(source: FloatModel) -> tuple[str, ...]:
    """Return the tensors that a build observes: those that some scheme quantizes."""
    graph = ir.load(source.path).graph
    named = (name for scheme in SCHEMES.values() for name in quantized_tensors(graph, scheme, QuantizeSettings()))
    return tuple(dict.fromkeys(named))


def action_of(way: str, source: FloatModel, samples: Sequence[Sample], scratch: Path) -> Callable[[], object]:
    """Return what is timed of one way."""
    tensors = observed_tensors(source)
    if way == _OURS:
        return lambda: calibrate(source, tensors, samples, len(samples), scratch)
    if way == _THEIRS:
        return lambda: _theirs(source, tensors, samples, scratch / "augmented.onnx")
    session = OnnxSession(source.path)
    return lambda: [session.run(sample.inputs) for sample in samples if way == _PLAIN]


def _theirs(source: FloatModel, tensors: Sequence[str], samples: Sequence[Sample], augmented: Path) -> None:
    calibrator = _SameTensors(tensors, source.path, augmented)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(_Reader(samples))
    calibrator.compute_data()


def _peaks(source: FloatModel, samples: Sequence[Sample], scratch: Path) -> dict[str, int] | None:
    if own_peak_bytes() is None:
        return None
    (name,) = samples[0].inputs
    stored = scratch / "samples.npy"
    np.save(stored, np.stack([sample.inputs[name] for sample in samples]))
    peaks = {}
    for way in (_OURS, _THEIRS, _PLAIN, _NOTHING):
        finished = run_watched([sys.executable, __file__, way, str(source.path), str(stored), name])
        if finished.exit_code != 0:
            raise NotMeasured(f"{way} in a process of its own: {last_line(finished.errors)}")
        peaks[way] = int(finished.output)
    return peaks


def _main(way: str, model: str, stored: str, name: str) -> None:
    samples = [Sample(str(index), {name: array}) for index, array in enumerate(np.load(stored))]
    source = FloatModel(Path(model), (TensorInfo(name, "float32", samples[0].inputs[name].shape),), ())
    with tempfile.TemporaryDirectory() as scratch:
        action_of(way, source, samples, Path(scratch))()
    sys.stdout.write(f"{own_peak_bytes()}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
