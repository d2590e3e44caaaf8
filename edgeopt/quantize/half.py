"""Weights as float16: half the bytes, no calibration, and answers that hardly differ.

The graph stores them as float16 with a Cast behind, so that it computes what every target computes that unpacks them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.errors import QuantizationError

_FEWEST = 64  # elements that a constant needs to be worth a Cast


def weights_as_half(graph: ir.Graph) -> None:
    """Store every large float32 initializer of a graph as float16.

    Raises:
        QuantizationError: a constant is beyond float16's 65,504, there is none to store, or one is not finite.
    """
    large = [value for value in graph.initializers.values() if _is_large(value)]
    if not large:
        raise QuantizationError(f"the graph has no float32 constant of {_FEWEST} elements to store as float16")
    for value in large:
        assert value.const_value is not None
        array = value.const_value.numpy()
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise QuantizationError(
                f"constant {value.name!r} reaches {float(np.abs(array).max()):g}, float16 ends at 65,504",
                hint="scale the layer, or leave the network in another precision",
            )
        tensor = ir.tensor(half, name=f"{value.name}.half")
        stored = ir.Value(name=tensor.name, shape=value.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{value.name}.unpack")
        cast.outputs[0].name, cast.outputs[0].shape = f"{value.name}.unpacked", value.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[str(value.name)]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


def is_half(graph: ir.Graph) -> bool:
    """Return whether a graph's weights are stored as float16."""
    return any(value.dtype == ir.DataType.FLOAT16 for value in graph.initializers.values())


def _is_large(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size >= _FEWEST
