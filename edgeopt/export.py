"""PyTorch or ONNX in, one clean float ONNX graph out, compared with its source on real samples.

``torch.onnx.export(dynamo=True)`` is used throughout: the tracing exporter silently turns a SAME padding that is
written ``-(-n // s)`` into another padding. The comparison at the end would stop a build on that or any other
disagreement, so no exporter is trusted.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from edgeopt.artifacts import FloatModel, TensorInfo, canonical_json
from edgeopt.cleaning import clean, quiet
from edgeopt.errors import ExportError
from edgeopt.onnx_file import check_inputs, check_shapes, open_onnx, read_onnx
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import ExportSettings, ModelSettings
from edgeopt.source import example_inputs

# Protobuf stops at 2 GiB; from here on the weights go to a file beside the graph.
EXTERNAL_DATA_BYTES = 1 << 30

# The record of which node of the exported program each tensor is; a graph that came as ONNX has none.
TORCH_NAMES = "torch_names.json"

Answer = Callable[[Sample], Sequence[NDArray[np.generic]]]


def export_torch(
    network: nn.Module | torch.export.ExportedProgram,
    model: ModelSettings,
    settings: ExportSettings,
    samples: Sequence[Sample],
    out_dir: Path,
) -> FloatModel:
    """Export a network in eval mode, clean the graph, and compare it with the network on ``samples``.

    Raises:
        ExportError: if the exporter refuses, or an output differs by more than the limit.
    """
    program = export_program(network, model, settings)
    graph, names = program.model, _names_in_torch(program)
    check_shapes(graph.graph.inputs, model, "the network")
    module = network.module() if isinstance(network, torch.export.ExportedProgram) else network
    exported = _finish(graph, model, out_dir)
    (out_dir / TORCH_NAMES).write_text(canonical_json(names), encoding="utf-8")
    compare(torch_answer(module, model), exported, samples, settings.max_relative_error)
    return exported


def import_onnx(
    path: Path, model: ModelSettings, settings: ExportSettings, samples: Sequence[Sample], out_dir: Path
) -> FloatModel:
    """Read a float ``.onnx`` file, clean the graph, and compare it with the file as it came on ``samples``.

    Raises:
        ModelError: if the file is damaged, reads data outside its folder, or has other inputs than the recipe says.
        ExportError: if cleaning changed an answer.
    """
    graph = read_onnx(path)
    check_inputs(graph, model, path)
    original = open_onnx(path)
    exported = _finish(graph, model, out_dir)

    def answer(sample: Sample) -> Sequence[NDArray[np.generic]]:
        return list(original.run(dict(sample.inputs)).values())

    compare(answer, exported, samples, settings.max_relative_error)
    return exported


def compare(answer: Answer, exported: FloatModel, samples: Sequence[Sample], limit: float) -> float:
    """Compare a network with its exported graph and return the largest relative error over samples and outputs.

    The error of an output is its largest absolute difference over its largest magnitude, on the worst sample.

    Raises:
        ExportError: naming the output and sample that differ most, if that is over ``limit``, or NaN.
    """
    if not samples:
        raise ExportError("an export must be compared on at least one sample, got none")
    session = OnnxSession(exported.path)
    worst, where = -1.0, ""
    for sample in samples:
        actual = session.run(dict(sample.inputs))
        answers = answer(sample)
        if len(answers) != len(actual):
            raise ExportError(f"the network has {len(answers)} outputs, the ONNX graph {len(actual)}: {list(actual)}")
        for (name, got), expected in zip(actual.items(), answers, strict=True):
            error = _relative_error(expected, got)
            if not (error <= worst or math.isnan(worst)):  # NaN is worse than everything
                worst, where = error, f"output {name!r} on sample {sample.name!r}"
    if not worst <= limit:
        raise ExportError(
            f"the ONNX graph and the network differ by {worst:.3g} of the output's range, expected at most "
            f"{limit:.3g}: {where}",
            hint="look for Python arithmetic on shapes in the network's forward (limit: export.max_relative_error)",
        )
    return worst


def torch_answer(module: nn.Module, model: ModelSettings) -> Answer:
    """Return a function that runs a PyTorch network on a sample, its inputs in the recipe's order.

    It uses one thread: a few inferences gain little from more, and on a busy machine more wait for one another.
    """

    def answer(sample: Sample) -> Sequence[NDArray[np.generic]]:
        with torch.no_grad(), _one_thread():
            outputs = module(*(torch.from_numpy(np.array(sample.inputs[name])) for name in model.inputs))
        flat = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        return [value.numpy() for value in flat]

    return answer


def float_model(path: Path) -> FloatModel:
    """Describe a float ONNX file."""
    graph = ir.load(path).graph
    return FloatModel(path, tuple(map(_tensor_info, graph.inputs)), tuple(map(_tensor_info, graph.outputs)))


def export_program(
    network: nn.Module | torch.export.ExportedProgram, model: ModelSettings, settings: ExportSettings
) -> torch.onnx.ONNXProgram:
    """Translate a network, not cleaned yet; the result has the exported program beside the graph.

    Raises:
        ExportError: if the exporter refuses.
    """
    dynamic = any(given.dynamic_batch for given in model.inputs.values())
    batch = 2 if dynamic else 1  # torch.export takes a size of 1 for a constant
    arguments = example_inputs(model, batch)
    is_program = isinstance(network, torch.export.ExportedProgram)
    dimension = torch.export.Dim("batch", min=1)
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                () if is_program else arguments,
                dynamo=True,
                opset_version=settings.opset,
                input_names=list(model.inputs),
                output_names=list(model.outputs) or None,
                dynamic_shapes=tuple({0: dimension} for _ in arguments) if dynamic and not is_program else None,
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        place, cause = _place(error)
        raise ExportError(
            f"torch.onnx cannot export the network: {place}{str(cause).strip().splitlines()[0]}",
            hint="a graph has no branches that depend on values; torch.where(condition, a, b) computes both sides",
        ) from error
    if program is None:
        raise ExportError("torch.onnx returned no graph")
    return program


def _place(error: BaseException) -> tuple[str, BaseException]:
    """Return the line of the network's own ``forward`` at which the export stopped, or nothing, and the error there."""
    library = Path(torch.__file__).parent
    cause: BaseException | None = error
    while cause is not None:
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if frame.name == "forward" and library not in Path(frame.filename).parents:
                return f"{Path(frame.filename).name}, line {frame.lineno}, in forward, {frame.line!r}: ", cause
        cause = cause.__cause__
    return "", error


def _names_in_torch(program: torch.onnx.ONNXProgram) -> dict[str, str]:
    """Return the node of the exported program that each tensor of the graph is: the exporter gives both one name."""
    exported = program.exported_program
    assert exported is not None
    nodes = {node.name for node in exported.graph.nodes}
    values = (str(value.name) for node in program.model.graph for value in node.outputs)
    outputs = (str(value.name) for value in program.model.graph.outputs)
    return {name: name for name in values if name in nodes} | dict(
        zip(outputs, map(str, exported.graph_signature.user_outputs), strict=True)
    )


def _finish(graph: ir.Model, model: ModelSettings, out_dir: Path) -> FloatModel:
    clean(graph)
    _rename_batch(graph, model)
    for output in graph.graph.outputs:
        if output.dtype not in (None, ir.DataType.FLOAT):
            raise ExportError(
                f"output {output.name!r} is {output.dtype.numpy()}, expected float32",
                hint="let the network end at its logits, and take the class outside of it",
            )
    return save_float(graph, out_dir / "model.onnx")


def save_float(graph: ir.Model, path: Path) -> FloatModel:
    """Write a float graph, its weights beside it if they are many, and describe it."""
    graph.producer_name, graph.producer_version = "edgeopt", ""
    size = sum(tensor.const_value.nbytes for tensor in graph.graph.initializers.values() if tensor.const_value)
    ir.save(graph, path, external_data=f"{path.name}.data" if size > EXTERNAL_DATA_BYTES else None)
    return float_model(path)


def _rename_batch(graph: ir.Model, model: ModelSettings) -> None:
    """Give the dynamic batch one name, whatever the exporter called it."""
    if not any(given.dynamic_batch for given in model.inputs.values()):
        return
    names = {str(value.shape[0]) for value in graph.graph.inputs if value.shape and not isinstance(value.shape[0], int)}
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        for output in node.outputs:
            _rename_dimension(output, names)
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        _rename_dimension(value, names)


def _rename_dimension(value: ir.Value, names: set[str]) -> None:
    if value.shape is not None and len(value.shape) and str(value.shape[0]) in names:
        value.shape = ir.Shape(["batch", *list(value.shape)[1:]])


def _tensor_info(value: ir.Value) -> TensorInfo:
    if value.dtype is None or value.shape is None:
        raise ExportError(f"the graph does not say dtype and shape of {value.name!r}")
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorInfo(str(value.name), value.dtype.numpy().name, shape)


def _relative_error(expected: NDArray[np.generic], got: NDArray[np.generic]) -> float:
    if expected.shape != got.shape:
        raise ExportError(
            f"the network answers with shape {list(expected.shape)}, the ONNX graph with {list(got.shape)}"
        )
    reference = expected.astype(np.float64)
    span = float(np.abs(reference).max(initial=0.0))
    return float(np.abs(reference - got.astype(np.float64)).max(initial=0.0)) / (span or 1.0)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
