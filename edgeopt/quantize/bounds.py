"""Activation functions whose bounds a scale does not imply, moved behind the quantization, where they are integers.

``quantize(clip(x, low, high)) == clip(quantize(x), quantize(low), quantize(high))``, because quantizing is monotone.
ONNX Runtime fuses a Relu or Clip with an integer kernel only if the scale implies it. It does not where the tensor
shares its scale with others, as those that a Concat joins do; the whole convolution would then compute in float.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgeopt.affine import quantize_to

_BYTES = (np.int8, np.uint8)  # of 16 bits there are no kernels to fuse with


def bounds_as_integers(graph: ir.Graph) -> None:
    """Put a Clip of integers behind the QuantizeLinear that alone reads a Relu or Clip, if its scale allows more."""
    for node in list(graph):
        bounds = _bounds(node)
        uses = list(node.outputs[0].uses()) if bounds is not None else []
        is_output = node.outputs[0].is_graph_output()
        if bounds is None or len(uses) != 1 or is_output or uses[0].node.op_type != "QuantizeLinear":
            continue
        quantize = uses[0].node
        scale, point = (_constant(value) for value in quantize.inputs[1:3])
        if scale is None or point is None or scale.size != 1 or point.dtype not in _BYTES:
            continue
        steps = [int(quantize_to(point.dtype.name, np.array(b, np.float32), float(scale), int(point))) for b in bounds]
        limits = np.iinfo(point.dtype)
        if steps != [limits.min, limits.max]:
            _move(graph, node, quantize, np.array(steps, point.dtype))


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds of a Relu or Clip, or ``None`` for anything else."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    bounds = [-math.inf, math.inf]
    for index, value in enumerate(node.inputs[1:3]):
        array = _constant(value)
        if value is not None and array is None:
            return None
        bounds[index] = bounds[index] if array is None else float(array.reshape(()))
    return bounds[0], bounds[1]


def _constant(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _move(graph: ir.Graph, node: ir.Node, quantize: ir.Node, steps: np.ndarray) -> None:
    stored = quantize.outputs[0]
    readers = list(stored.uses())
    quantize.replace_input_with(0, node.inputs[0])
    inputs = [stored]
    for name, step in zip(("low", "high"), steps, strict=True):
        tensor = ir.tensor(step, name=f"{quantize.name}_{name}")
        inputs.append(
            ir.Value(name=tensor.name, shape=ir.Shape(()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
        graph.register_initializer(inputs[-1])
    clip = ir.node("Clip", inputs, name=f"{node.name}_integers")
    clip.outputs[0].name, clip.outputs[0].type, clip.outputs[0].shape = (
        f"{stored.name}_clipped",
        stored.type,
        stored.shape,
    )
    graph.insert_after(quantize, clip)
    for use in readers:
        use.node.replace_input_with(use.idx, clip.outputs[0])
    graph.remove(node, safe=True)
