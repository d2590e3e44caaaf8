"""A whole network through edgeopt's own stages, and what can be counted and compared of the result.

    network -export-> float ONNX -calibrate, quantize-> QDQ ONNX -lower-> .tflite -run-> facts

The float file is compared with ONNX Runtime on the float graph; the int8 file, with XNNPACK, with ONNX Runtime on the
QDQ graph as the x86 bundle has it (uint8 activations, default optimizations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from tflite_runtimes import Feeds, open_tflite
from torch import nn

from edgeopt.affine import quantize_int8
from edgeopt.artifacts import FloatModel, QdqModel, Ranges, TensorInfo
from edgeopt.calibrate.ranges import choose_ranges
from edgeopt.calibrate.statistics import calibrate
from edgeopt.cleaning import clean
from edgeopt.export import Answer, compare, export_torch, float_model, import_onnx, torch_answer
from edgeopt.onnx_file import fix_input_shapes, read_onnx
from edgeopt.parity import sqnr_db
from edgeopt.quantize.placement import quantized_tensors
from edgeopt.quantize.qdq import quantize
from edgeopt.quantize.scheme import ASYMMETRIC
from edgeopt.quantize.unsigned import with_unsigned_activations
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import CalibrationSettings, ExportSettings, InputSettings, ModelSettings, QuantizeSettings
from edgeopt.tflite.inspect import TfliteFile, read_tflite
from edgeopt.tflite.lower import lower

Layouts = Mapping[str, Literal["NCHW", "NHWC"]]
Answers = list[dict[str, np.ndarray]]

CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
EVERYTHING = QuantizeSettings()


@dataclass(frozen=True)
class Facts:
    """What one network's two files are like, worst over outputs and held-out samples.

    Attributes:
        float_error: largest difference from ONNX Runtime, relative to the range of the output.
        num_float_operators, num_operators: of the float and of the int8 file.
        float_transposes, transposes: TRANSPOSE operators in them.
        integer_share: the share of multiply-accumulates in integer kernels of the int8 file.
        equal_share: the share of output values in which the int8 runtimes agree to less than half a step.
        worst_steps: how many steps apart they are at most.
        sqnr_db: of the int8 file's answers to the float graph's; what int8 costs, which no test of a runtime judges.
        float_file, int8_file: the files themselves.
        stored_inputs: what the int8 file was fed, an array for each input with the samples first.
    """

    name: str
    float_error: float
    num_float_operators: int
    num_operators: int
    float_transposes: int
    transposes: int
    integer_share: float
    equal_share: float
    worst_steps: int
    sqnr_db: float
    float_file: bytes = field(repr=False)
    int8_file: bytes = field(repr=False)
    stored_inputs: list[np.ndarray] = field(repr=False)

    @property
    def row(self) -> str:
        """One line of the table that a suite prints."""
        return (
            f"{self.name:22} {self.num_float_operators:5} {self.num_operators:5} {self.transposes:4} "
            f"{self.float_error:9.1e} {self.integer_share:7.1%} {self.equal_share:8.2%} {self.worst_steps:4} "
            f"{self.sqnr_db:5.1f}"
        )


Judged = Callable[[str], Facts]  # by the network's name
_TITLES = f"{'network':22} {'float':>5} {'int8':>5} {'tr.':>4} {'error':>9} {'int MAC':>7}"
HEADER = f"{_TITLES} {'equal':>8} {'steps':>4} {'dB':>5}"


def judge(
    name: str,
    source: nn.Module | Path,
    calibration: Sequence[Feeds],
    held_out: Sequence[Feeds],
    folder: Path,
    *,
    input_layouts: Layouts | None = None,
    output_layouts: Layouts | None = None,
    settings: QuantizeSettings = EVERYTHING,
) -> Facts:
    """Take a network through every stage and return the facts; layouts left out are NHWC for four axes."""
    model = exported(source, calibration[:2], folder)
    inputs = images(model.inputs) if input_layouts is None else input_layouts
    outputs = images(model.outputs) if output_layouts is None else output_layouts
    float_file = lower(ir.load(model.path), input_layouts=inputs, output_layouts=outputs)
    error = float_error(model, float_file, held_out, inputs, outputs)
    qdq, ranges = quantized(model, calibration, folder, settings)
    int8_file = lower(ir.load(qdq.path), input_layouts=inputs, output_layouts=outputs)
    steps = steps_apart(qdq, int8_file, ranges, held_out, inputs, outputs)
    as_float, as_int8 = read_tflite(float_file), read_tflite(int8_file)
    return Facts(
        name=name,
        float_error=error,
        num_float_operators=len(as_float.operators),
        num_operators=len(as_int8.operators),
        float_transposes=builtins(as_float)["TRANSPOSE"],
        transposes=builtins(as_int8)["TRANSPOSE"],
        integer_share=as_int8.integer_coverage,
        equal_share=float((steps == 0).mean()),
        worst_steps=int(steps.max()),
        sqnr_db=worst_sqnr_db(model, int8_file, held_out, inputs, outputs),
        float_file=float_file,
        int8_file=int8_file,
        stored_inputs=stored_inputs(as_int8, held_out, inputs),
    )


def exported(source: nn.Module | Path, samples: Sequence[Feeds], folder: Path) -> FloatModel:
    """Export or import a network as a build does; the result is compared with its source on ``samples``."""
    settings, named = ExportSettings(), [Sample(str(index), dict(feeds)) for index, feeds in enumerate(samples)]
    shapes = {name: InputSettings(array.shape, layout="any") for name, array in samples[0].items()}
    model = ModelSettings(shapes, factory="given:network")
    if any(array.dtype != np.float32 for array in samples[0].values()):
        return _exported_with_integers(source, model, settings, named, folder)
    if isinstance(source, Path):
        return import_onnx(source, ModelSettings(shapes, path=source), settings, named, folder)
    return export_torch(source.eval(), model, settings, named, folder)


def _exported_with_integers(
    source: nn.Module | Path, model: ModelSettings, settings: ExportSettings, samples: Sequence[Sample], folder: Path
) -> FloatModel:
    """Export or import a network that takes integers too, which a recipe cannot say."""
    answer: Answer
    if isinstance(source, Path):
        graph, session = read_onnx(source), OnnxSession(source)
        fix_input_shapes(graph, {name: given.shape for name, given in model.inputs.items()})

        def answer(sample: Sample) -> list[np.ndarray]:
            return list(session.run(sample.inputs).values())
    else:
        arguments = tuple(torch.from_numpy(np.array(array)) for array in samples[0].inputs.values())
        program = torch.onnx.export(
            source.eval(), arguments, dynamo=True, opset_version=settings.opset, input_names=list(model.inputs),
            optimize=False, verbose=False,
        )  # fmt: skip
        assert program is not None
        graph, answer = program.model, torch_answer(source, model)
    clean(graph)
    ir.save(graph, folder / "model.onnx")
    found = float_model(folder / "model.onnx")
    compare(answer, found, samples, settings.max_relative_error)
    return found


def quantized(
    model: FloatModel, calibration: Sequence[Feeds], folder: Path, settings: QuantizeSettings = EVERYTHING
) -> tuple[QdqModel, Ranges]:
    """Calibrate and quantize as a build for arm64 does."""
    observed = FloatModel(model.path, *(tuple(filter(_is_float, side)) for side in (model.inputs, model.outputs)))
    tensors = quantized_tensors(ir.load(model.path).graph, ASYMMETRIC, settings)
    samples = [Sample(str(index), dict(feeds)) for index, feeds in enumerate(calibration)]
    statistics = calibrate(observed, tensors, samples, len(samples), folder, histograms=False)
    ranges = choose_ranges(observed, statistics, ASYMMETRIC.activation_params, CalibrationSettings("these"), folder)
    (folder / "qdq").mkdir()
    return quantize(model, ranges, ASYMMETRIC, settings, folder / "qdq"), ranges


def float_error(
    model: FloatModel, content: bytes, held_out: Sequence[Feeds], inputs: Layouts, outputs: Layouts
) -> float:
    """Return the largest difference of a file from ONNX Runtime, relative to the range of the output."""
    session = OnnxSession(model.path)
    reference = [session.run(feeds) for feeds in held_out]
    actual = run_tflite_on(content, held_out, inputs, outputs)
    worst = 0.0
    for name, (wanted, got) in _paired(reference, actual).items():
        span = float(np.ptp(wanted))
        assert span > 0, f"a constant answer proves nothing: {name}"
        worst = max(worst, float(np.abs(wanted.astype(np.float64) - got).max()) / span)
    return worst


def steps_apart(
    qdq: QdqModel, content: bytes, ranges: Ranges, held_out: Sequence[Feeds], inputs: Layouts, outputs: Layouts
) -> np.ndarray:
    """Return how many steps apart the int8 runtimes are, for every value of every output, flat.

    The step of an output that the graph leaves float is the one that its range would have.
    """
    session = OnnxSession(ir.to_proto(with_unsigned_activations(ir.load(qdq.path))).SerializeToString())
    reference = [session.run(feeds) for feeds in held_out]
    actual = run_tflite_on(content, held_out, inputs, outputs)
    file, steps = read_tflite(content), []
    for name, (wanted, got) in _paired(reference, actual).items():
        assert np.ptp(wanted) > 0, f"a constant answer proves nothing: {name}"
        given, observed = file.outputs[name].scales, ranges.tensors.get(name)
        if given:
            scale = given[0]
        elif observed is not None:
            scale = ASYMMETRIC.activation_params(observed.minimum, observed.maximum).scale
        else:
            scale = 1.0  # an output of integers: indices, counts
        difference = wanted.astype(np.float64) - got.astype(np.float64)
        steps.append(np.abs(np.rint(difference / np.float32(scale))).ravel())
    return np.concatenate(steps)


def worst_sqnr_db(
    model: FloatModel, content: bytes, held_out: Sequence[Feeds], inputs: Layouts, outputs: Layouts
) -> float:
    """Return signal to noise of a file's answers to the float graph's, of the worst output over all samples."""
    session = OnnxSession(model.path)
    reference = [session.run(feeds) for feeds in held_out]
    paired = _paired(reference, run_tflite_on(content, held_out, inputs, outputs))
    return min(sqnr_db(wanted, got) for wanted, got in paired.values())


def run_tflite_on(content: bytes, held_out: Sequence[Feeds], inputs: Layouts, outputs: Layouts) -> Answers:
    """Run a file in LiteRT with XNNPACK; arrays go in and come out as in ONNX."""
    run = open_tflite(content)
    return [
        {
            name: array.transpose(CHANNELS_FIRST) if outputs.get(name) == "NHWC" else array
            for name, array in run(channels_last(feeds, inputs)).items()
        }
        for feeds in held_out
    ]


def channels_last(feeds: Feeds, layouts: Layouts) -> dict[str, np.ndarray]:
    """Return the arrays as a file with these layouts takes them."""
    return {
        name: np.ascontiguousarray(array.transpose(CHANNELS_LAST)) if layouts.get(name) == "NHWC" else array
        for name, array in feeds.items()
    }


def stored_inputs(file: TfliteFile, held_out: Sequence[Feeds], layouts: Layouts) -> list[np.ndarray]:
    """Return what a file takes for these samples, quantized as its inputs are."""
    samples, stored = [channels_last(feeds, layouts) for feeds in held_out], []
    for name, tensor in file.inputs.items():
        array = np.stack([sample[name] for sample in samples])
        stored.append(quantize_int8(array, tensor.scales[0], tensor.zero_points[0]) if tensor.scales else array)
    return stored


def images(tensors: Sequence[TensorInfo]) -> Layouts:
    """Say that everything with four axes is handed over channels-last."""
    return {tensor.name: "NHWC" for tensor in tensors if len(tensor.shape) == 4}


def builtins(file: TfliteFile) -> Counter[str]:
    """Count the operators of a file by name."""
    return Counter(operator.builtin for operator in file.operators)


def _paired(reference: Answers, actual: Answers) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Join the samples of each output, flat; names and shapes have to be the same, and every value finite."""
    assert reference, "no samples prove nothing"
    paired = {}
    for name in reference[0]:
        shapes = [[answers[name].shape for answers in side] for side in (reference, actual)]
        assert shapes[0] == shapes[1], name  # one for each sample: how many boxes are found depends on it
        wanted, got = (np.concatenate([answers[name].ravel() for answers in side]) for side in (reference, actual))
        assert np.isfinite(wanted).all(), name
        assert np.isfinite(got).all(), name
        paired[name] = wanted, got
    assert set(actual[0]) == set(paired)
    return paired


def _is_float(tensor: TensorInfo) -> bool:
    return tensor.dtype == "float32"
