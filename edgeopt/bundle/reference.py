"""Makes golden vectors: what the float and the quantized network answer on held-out samples.

The quantized reference is ONNX Runtime's integer kernels on the QDQ graph with unsigned activations, for every target
of the asymmetric scheme: another implementation than the device's, so that a mistake in lowering cannot hide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt import parity
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
from edgeopt.stage import logger, track

# Reference kernels are slow: they answer to so many samples as this many multiplications allow, and to a few at least.
_BUILT_IN_MACS = 100_000_000
_FEWEST_BUILT_IN = 4
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
    classes = [sample.class_number for sample in samples]
    if all(number is not None for number in classes):
        golden["labels"] = np.array(classes, np.int64)
    return golden


def quantized_answers(source: QdqModel, samples: Sequence[Sample]) -> Golden:
    """Run the QDQ graph on the held-out samples; return what each output answered, ``(N, ...)`` in float32."""
    session = OnnxSession(ir.to_proto(with_unsigned_activations(ir.load(source.path))).SerializeToString())
    answers: dict[str, list[NDArray[np.generic]]] = {}
    for sample in track(samples, total=len(samples), description="quantized reference"):
        for name, value in session.run(sample.inputs).items():
            answers.setdefault(name, []).append(np.asarray(value[0], np.float32))
    return {name: np.stack(values) for name, values in answers.items()}


def golden_vectors(
    samples: Sequence[Sample],
    float_answers: Golden,
    quantized: Golden,
    inputs: Mapping[str, InputSettings],
    border: Border,
) -> Golden:
    """Return a target's golden vectors: inputs as its model takes them, the quantized answers on its integers.

    Args:
        samples: the held-out samples.
        float_answers: from :func:`float_reference`.
        quantized: from :func:`quantized_answers`.
        inputs: the network's inputs as the recipe declares them.
        border: what the target's model takes and gives.
    """
    golden = dict(float_answers)
    for facts in border.inputs:
        layout = inputs[facts.name].layout
        arrays = (in_layout(sample.inputs[facts.name], layout, facts.layout) for sample in samples)
        golden[f"input/{facts.name}"] = np.stack([on_grid(array[0], facts) for array in arrays])
    for facts in border.outputs:
        answers = in_layout(quantized[facts.name].astype(np.float32), "NCHW", facts.layout)
        golden[f"quantized/{facts.name}"] = on_grid(answers, facts)
        golden[f"float/{facts.name}"] = in_layout(golden[f"float/{facts.name}"], "NCHW", facts.layout)
    return golden


def built_in_reference(model: Path, num_macs: int, golden: Golden, border: Border) -> Golden:
    """Return ``built_in/NAME``: what TFLite's reference kernels answer to the first samples, at least four of them.

    Runtimes without XNNPACK round elsewhere: TFLite Micro and tflite-runtime on ARM as these kernels do. Of some
    operators, TILE in int8 for one, there is no reference kernel: nothing then.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        interpreter = Interpreter(model_path=str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    except ValueError as error:
        logger.info("no golden vectors of TFLite's reference kernels: %s", str(error).splitlines()[0])
        return {}
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    answers: dict[str, list[NDArray[np.generic]]] = {facts.name: [] for facts in border.outputs}
    count = max(_FEWEST_BUILT_IN, _BUILT_IN_MACS // max(1, num_macs))
    for index in range(min(count, len(golden["names"]))):
        outputs = runner(**parity.feed(golden, {"inputs": [asdict(facts) for facts in border.inputs]}, index))
        for name, values in answers.items():
            values.append(np.array(outputs[name][0]))
    return {f"built_in/{name}": np.stack(values) for name, values in answers.items()}


def on_grid(values: NDArray[np.float32], facts: TensorFacts) -> NDArray[np.generic]:
    """Return real numbers as the integers that a tensor has for them, or as they are if it has none."""
    if facts.integer_dtype is None or facts.scale is None or facts.zero_point is None:
        return values
    return quantize_to(facts.integer_dtype, values, facts.scale, facts.zero_point)


def in_layout(array: NDArray[Any], given: str, wanted: str) -> NDArray[Any]:
    """Return an array ``(N, ...)`` of images in another layout; anything else as it is."""
    return array.transpose(_TO_LAYOUT[given, wanted]) if (given, wanted) in _TO_LAYOUT else array
