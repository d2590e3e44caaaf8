"""One ONNX file to one TFLite file, float or quantized, without a build: the lowering as a door of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from edgeopt.atomic import write_bytes
from edgeopt.errors import LoweringError, ModelError
from edgeopt.inspection import Inspection
from edgeopt.onnx_file import fix_input_shapes, read_onnx
from edgeopt.tflite.inspect import inspect_tflite
from edgeopt.tflite.lower import lower

_MAX_BYTES = 2**31 - 1  # what protobuf and flatbuffers can address


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_layouts: Mapping[str, Literal["NCHW", "NHWC"]] | None = None,
    output_layouts: Mapping[str, Literal["NCHW", "NHWC"]] | None = None,
    integer_io: bool = True,
) -> Inspection:
    """Write the ONNX model ``source`` as the TFLite file ``destination``, and return what is inside.

    What lies between DequantizeLinear and QuantizeLinear runs in int8 kernels with the graph's own scales, everything
    else in float. The file is either whole or not there.

    Args:
        source: an ONNX file, of opset 13 or later (older ones are converted first), with its external data beside it.
        destination: the .tflite file; an old one is replaced.
        input_shapes: fixed shapes, in the file's own order, for inputs with dynamic axes, by name. Dynamic ones stay
            so; a window that slides over a dynamic height, for one, cannot be padded in TFLite.
        input_layouts: how the application hands over inputs with four axes, by name; left out, as in the ONNX file.
        output_layouts: how it wants outputs with four axes.
        integer_io: whether quantized inputs and outputs are int8 tensors, or float ones.

    Raises:
        UsageError: if there is no input of that name, or it does not take that shape.
        ModelError: if the file is damaged.
        LoweringError: naming every node that TFLite cannot express exactly.
        StorageError: if the destination cannot be written.
    """
    path = Path(source)
    _check_size(path)
    graph = _read(path)
    fix_input_shapes(graph, input_shapes or {})
    content = lower(graph, input_layouts=input_layouts, output_layouts=output_layouts, integer_io=integer_io)
    write_bytes(Path(destination), content)
    return inspect_tflite(Path(destination))


def _read(path: Path) -> ir.Model:
    graph = read_onnx(path)
    if not graph.graph.outputs:
        raise ModelError(f"{path.name} has no outputs")
    return graph


def _check_size(path: Path) -> None:
    """Refuse what no TFLite file can hold before anything large is read."""
    try:
        num_bytes = path.stat().st_size
        if num_bytes <= _MAX_BYTES:
            num_bytes += sum(map(_external_bytes, onnx.load(str(path), load_external_data=False).graph.initializer))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's errors share no root with onnx's
        raise ModelError(f"{path.name} is not an ONNX model that can be read: {error}") from error
    if num_bytes > _MAX_BYTES:
        raise LoweringError(
            f"{path.name} takes {num_bytes:,} bytes, a .tflite file holds at most {_MAX_BYTES:,}",
            hint="quantize or prune the network",
        )


def _external_bytes(tensor: onnx.TensorProto) -> int:
    return sum(int(entry.value) for entry in tensor.external_data if entry.key == "length")
