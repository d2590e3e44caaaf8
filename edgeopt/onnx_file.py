"""``.onnx`` files as they come from users: read without reaching outside their folder, checked against the recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxscript import version_converter

from edgeopt.errors import ModelError, UsageError, did_you_mean
from edgeopt.session import OnnxSession
from edgeopt.settings import INPUT_DTYPES, ModelSettings

_OLDEST_OPSET = 13  # per-channel QuantizeLinear
_QUANTIZED = re.compile("QuantizeLinear|^QLinear|Integer$|^QGemm$")


def read_onnx(path: Path) -> ir.Model:
    """Read an ONNX file of opset 13 or newer (older ones are converted), never reading outside its folder.

    Raises:
        ModelError: if the file is damaged or has external data elsewhere.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
        _check_external_data(proto, path)
        _name_unknown_sizes(proto.graph)
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(proto)
        graph = ir.from_proto(proto)
    except ModelError:
        raise
    except Exception as error:  # protobuf, onnx and onnx_ir share no root for what a damaged file raises
        raise ModelError(f"{path.name} is not an ONNX model that can be read: {error}") from error
    opset = graph.opset_imports.get("", 0)
    if opset < _OLDEST_OPSET:
        version_converter.convert_version(graph, _OLDEST_OPSET, fallback=True)
    return graph


def fix_input_shapes(graph: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs with dynamic axes fixed shapes, in place, and infer anew what was dynamic behind them.

    Raises:
        UsageError: if there is no such input, or a size is not positive or not that of the graph.
    """
    values = {str(value.name): value for value in graph.graph.inputs}
    for name, shape in shapes.items():
        if name not in values:
            raise UsageError(f"the model has no input {name!r}", hint=did_you_mean(name, list(values)))
        given = list(shape) if values[name].shape is None else list(values[name].shape or ())
        fits = len(given) == len(shape) and all(
            wanted > 0 and (size == wanted or not isinstance(size, int))
            for size, wanted in zip(given, shape, strict=True)
        )
        if not fits:
            described = [size if isinstance(size, int) else "any" for size in given]
            raise UsageError(f"input {name!r}: got the shape {list(shape)}, the model takes {described}")
        values[name].shape = ir.Shape(shape)
    if not shapes:
        return
    for node in graph.graph:
        for output in node.outputs:
            if output.shape is not None and not output.shape.is_static():
                output.shape = None
    ShapeInferencePass()(graph)


def open_onnx(path: Path) -> OnnxSession:
    """Load an ONNX file in ONNX Runtime.

    Raises:
        ModelError: if it has an operator that ONNX Runtime does not know.
    """
    try:
        return OnnxSession(path)
    except Exception as error:  # ONNX Runtime's errors share no root
        raise ModelError(f"ONNX Runtime cannot run {path.name}: {error}") from error


def check_inputs(graph: ir.Model, model: ModelSettings, path: Path) -> None:
    """Check the inputs of a file against the recipe and give them the recipe's batch, in place.

    Raises:
        ModelError: if they have other names, shapes or types, or the file is quantized.
    """
    # Files of the older format list their weights among the inputs.
    values = [value for value in graph.graph.inputs if value.name not in graph.graph.initializers]
    names = [str(value.name) for value in values]
    if names != list(model.inputs):
        raise ModelError(f"{path.name} has the inputs {names}, the recipe says {list(model.inputs)}")
    if any(_QUANTIZED.search(node.op_type) for node in graph.graph):
        raise ModelError(
            f"{path.name} is quantized already", hint="give the float network; edgeopt calibrates it itself"
        )
    check_shapes(values, model, path.name)
    for value in values:
        expected = model.inputs[str(value.name)]
        batch = value.shape[0] if expected.dynamic_batch and value.shape else 1
        value.shape = ir.Shape([batch, *expected.shape[1:]])


def check_shapes(values: Iterable[ir.Value], model: ModelSettings, where: str) -> None:
    """Check shapes and types of inputs against the recipe; ``where`` is what messages call their graph.

    Raises:
        ModelError: naming the first that differs.
    """
    for value in values:
        expected, got = model.inputs[str(value.name)], list(value.shape or ())
        fits = len(got) == len(expected.shape) and all(
            not isinstance(size, int) or size == wanted for size, wanted in zip(got, expected.shape, strict=True)
        )
        if not fits:
            raise ModelError(f"{where}: input {value.name!r} has shape {got}, the recipe says {list(expected.shape)}")
        dtype = None if value.dtype is None else value.dtype.numpy().name
        if dtype != expected.dtype:
            raise ModelError(
                f"{where}: input {value.name!r} is {dtype}, the recipe says {expected.dtype}",
                hint=f"write dtype = {dtype!r}" if dtype in INPUT_DTYPES else "inputs are " + ", ".join(INPUT_DTYPES),
            )
        if expected.dynamic_batch and isinstance(got[0], int):
            raise ModelError(
                f"{where}: input {value.name!r} has a batch of {got[0]}, the recipe says that it is dynamic",
                hint="export it with a dynamic batch, or write dynamic_batch = false",
            )


def _name_unknown_sizes(graph: onnx.GraphProto) -> None:
    """Give a size of -1, by which Paddle's exporter says that it is not known, a name as ONNX wants it."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value == -1:
                dim.dim_param = f"{value.name}_{axis}"


def _check_external_data(proto: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in _tensors(proto.graph):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            location = folder / entry.value
            if os.path.isabs(entry.value) or not location.resolve().is_relative_to(folder) or not location.is_file():
                raise ModelError(f"{path.name}: the data of {tensor.name!r} must lie beside it, got {entry.value!r}")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)
