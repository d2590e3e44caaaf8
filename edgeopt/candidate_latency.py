"""How long a candidate takes in a target's own runtime, in int8, as a share of the network that it came from.

The candidate is exported, calibrated on a few samples, quantized and lowered as a build would do it, without
corrections, which cost no time when the network runs. Both are then timed in turns on one thread, on the machine that
builds. Figures of an emulator would not be latencies, so a target whose runtime is not here is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgeopt.artifacts import FloatModel, LoweredModel
from edgeopt.errors import CompressionError
from edgeopt.samples import Dataset, Sample
from edgeopt.settings import QuantizeSettings, Recipe
from edgeopt.target import Layout, LoweringRequest, TargetSpec, find_target, load_backend

if TYPE_CHECKING:
    from torch import nn

_NUM_SAMPLES = 4
# Below, an inference is mostly the way in and out of the runtime.
_SHORTEST_MS = 0.2

Inference = Callable[[], object]


@dataclass
class CandidateLatency:
    """Times networks of one recipe; what the whole network is compared by is lowered once."""

    recipe: Recipe
    open_calibration: Callable[[], Dataset]
    _opened: dict[tuple[str, int], tuple[nn.Module, Inference]] = field(default_factory=dict)

    def __call__(self, candidate: nn.Module, whole: nn.Module, target: str) -> float:
        """Return the median ratio of an inference of ``candidate`` to one of ``whole``.

        Raises:
            CompressionError: the target's runtime is not here, or the network is too small to be timed.
            TargetError: there is no such target.
            LoweringError: the target cannot express the network.
        """
        from edgeopt.speed import compare

        spec = find_target(target)
        if not spec.timed_here:
            raise CompressionError(
                f"budget: the runtime of target {target!r} does not run here, so no latency can be measured",
                hint='set target = "arm64" or "x86", or give a budget of num_macs',
            )
        report = compare(self._opened_once(whole, spec), self._inference(candidate, spec))
        if report.float_ms < _SHORTEST_MS:
            raise CompressionError(
                f"budget: an inference of the whole network takes {report.float_ms:.3f} ms on {target}, most of which "
                f"is the call itself: under {_SHORTEST_MS} ms nothing can be told",
                hint="give a budget of num_macs",
            )
        return report.ratio

    def _opened_once(self, whole: nn.Module, spec: TargetSpec) -> Inference:
        key = spec.name, id(whole)
        if key not in self._opened:
            self._opened[key] = whole, self._inference(whole, spec)  # held, so that its id stays its own
        return self._opened[key][1]

    def _inference(self, network: nn.Module, spec: TargetSpec) -> Inference:
        """Lower a network for a target, and return what runs it on one sample."""
        from edgeopt.accuracy.answers import fed_to
        from edgeopt.dataset import checked_samples
        from edgeopt.verdict import open_quietly

        inputs = self.recipe.model.inputs
        samples = list(checked_samples(self.open_calibration(), _NUM_SAMPLES, inputs, "calibration"))
        with TemporaryDirectory() as scratch:
            lowered = self._lowered(network, spec, samples, Path(scratch))
            run, _ = open_quietly(lowered.path, spec.model_format, spec.runtime_package, threads=1)
        tensors = [asdict(facts) for facts in lowered.border.inputs]
        return partial(run, fed_to(samples[0], tensors, inputs))

    def _lowered(self, network: nn.Module, spec: TargetSpec, samples: list[Sample], folder: Path) -> LoweredModel:
        """Export, calibrate, quantize and lower a network."""
        import onnx_ir as ir

        from edgeopt.calibrate.ranges import choose_ranges
        from edgeopt.calibrate.statistics import calibrate
        from edgeopt.export import export_torch
        from edgeopt.quantize.border import border_of
        from edgeopt.quantize.placement import quantized_tensors
        from edgeopt.quantize.qdq import quantize
        from edgeopt.quantize.scheme import scheme_named

        model, scheme, settings = self.recipe.model, scheme_named(spec.scheme), QuantizeSettings()
        source = export_torch(network, model, self.recipe.export, samples, folder)
        watched = quantized_tensors(ir.load(source.path).graph, scheme, settings)
        statistics = calibrate(source, watched, samples, len(samples), folder, histograms=False)
        chosen = replace(self.recipe.calibration, method="minmax")
        ranges = choose_ranges(source, statistics, scheme.activation_params, chosen, folder)
        quantized_in, lowered_in = folder / "quantized", folder / "lowered"
        for made in (quantized_in, lowered_in):
            made.mkdir()
        quantized = quantize(source, ranges, scheme, settings, quantized_in)
        border = border_of(quantized, ranges, model.inputs)
        return load_backend(spec).lower(quantized, border, self._request(spec, source), lowered_in)

    def _request(self, spec: TargetSpec, source: FloatModel) -> LoweringRequest:
        """Ask for images as the target prefers them."""
        given = {name: item.layout for name, item in self.recipe.model.inputs.items() if item.layout != "any"}
        inputs: dict[str, Layout] = {name: spec.image_layout or layout for name, layout in given.items()}
        pictures = [output.name for output in source.outputs if len(output.shape) == 4]
        return LoweringRequest(inputs, dict.fromkeys(pictures, spec.image_layout or "NCHW"), max_batch=1)
