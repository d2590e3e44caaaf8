"""Makes golden vectors: what the float and the quantized network answer on held-out samples.

The quantized reference is ONNX Runtime's integer kernels on the QDQ graph with unsigned activations, for every target
of the asymmetric scheme: another implementation than the device's, so that a mistake in lowering cannot hide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.affine import quantize_to
from edgeopt.artifacts import FloatModel, QdqModel
from edgeopt.bundle.golden import Golden
from edgeopt.dataset import sample_digest
from edgeopt.errors import DataError
from edgeopt.inspection import Border, TensorFacts
from edgeopt.quantize.unsigned import with_unsigned_activations
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import InputSettings
from edgeopt.stage import track

_TO_LAYOUT = {("NCHW", "NHWC"): (0, 2, 3, 1), ("NHWC", "NCHW"): (0, 3, 1, 2)}


def float_reference(source: FloatModel, samples: Sequence[Sample], calibration_digests: Sequence[str]) -> Golden:
    """Run the float graph on the held-out samples.

    Raises:
        DataError: if a sample was calibrated on, or the network answers with NaN.
    """
    session = OnnxSession(source.path)
    seen = set(calibration_digests)
    answers: dict[str, list[NDArray[np.generic]]] = {}
    for sample in track(samples, total=len(samples), description="float reference"):
        if sample_digest(sample) in seen:
            raise DataError(
                f"held-out sample {sample.name!r} is a calibration sample too", hint="the two splits must be disjoint"
            )
        for name, value in session.run(sample.inputs).items():
            if not np.isfinite(value).all():
                raise DataError(f"output {name!r} of the float network is NaN or infinite on sample {sample.name!r}")
            answers.setdefault(name, []).append(value[0])
    golden: Golden = {f"float/{name}": np.stack(values) for name, values in answers.items()}
    golden["names"] = np.array([sample.name for sample in samples])
    labels = [sample.label for sample in samples]
    if all(label is not None for label in labels):
        golden["labels"] = np.array(labels, np.int64)
    return golden


def quantized_reference(
    source: QdqModel,
    samples: Sequence[Sample],
    float_answers: Golden,
    inputs: Mapping[str, InputSettings],
    border: Border,
) -> Golden:
    """Add the inputs as a target's model takes them, and the quantized network's answers on its grid of integers."""
    session = OnnxSession(ir.to_proto(with_unsigned_activations(ir.load(source.path))).SerializeToString())
    golden = dict(float_answers)
    fed: dict[str, list[NDArray[np.generic]]] = {facts.name: [] for facts in border.inputs}
    answers: dict[str, list[NDArray[np.generic]]] = {facts.name: [] for facts in border.outputs}
    for sample in track(samples, total=len(samples), description="quantized reference"):
        outputs = session.run(sample.inputs)
        for facts in border.inputs:
            array = _in_layout(sample.inputs[facts.name], inputs[facts.name].layout, facts.layout)
            fed[facts.name].append(_on_grid(array[0], facts))
        for facts in border.outputs:
            answers[facts.name].append(_on_grid(np.asarray(outputs[facts.name][0], np.float32), facts))
    golden.update({f"input/{name}": np.stack(values) for name, values in fed.items()})
    golden.update({f"quantized/{name}": np.stack(values) for name, values in answers.items()})
    return golden


def _on_grid(values: NDArray[np.float32], facts: TensorFacts) -> NDArray[np.generic]:
    if facts.integer_dtype is None or facts.scale is None or facts.zero_point is None:
        return values
    return quantize_to(facts.integer_dtype, values, facts.scale, facts.zero_point)


def _in_layout(array: NDArray[np.float32], given: str, wanted: str) -> NDArray[np.float32]:
    return array.transpose(_TO_LAYOUT[given, wanted]) if (given, wanted) in _TO_LAYOUT else array
