"""Random small quantized graphs: LiteRT's answer against ONNX Runtime's."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tflite_graphs import GraphWriter, channel_scales
from tflite_runtimes import lowered, random_feeds, run_onnx, run_tflite

OUTPUT_SCALE = 0.11
FLOAT_SUMS = ("ReduceMean", "ReduceSum", "ConvTranspose")


@st.composite
def quantized_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A convolution of any window, either way round, and up to four operators behind it, everything quantized."""
    channels, height, width = draw(st.integers(1, 5)), draw(st.integers(5, 9)), draw(st.integers(5, 9))
    write = GraphWriter(draw(st.integers(0, 99)))
    scale, point = draw(st.sampled_from([0.02, 0.031])), draw(st.integers(-20, 20))
    x = write.quantized(write.input("x", (draw(st.integers(1, 2)), channels, height, width)), scale, point)
    convolution = draw(st.sampled_from([_convolution, _transposed_convolution]))
    value = write.quantized(convolution(draw, write, x, scale, channels), OUTPUT_SCALE, draw(st.integers(-20, 20)))
    if draw(st.booleans()):
        value = write.quantized(_function(draw, write, value), OUTPUT_SCALE, draw(st.integers(-20, 20)))
    if draw(st.booleans()):
        value = _extreme(draw, write, value)
    for _ in range(draw(st.integers(0, 2))):
        value = _moved(draw, write, value)
    write.output(value)
    return write.model()


def _convolution(draw: st.DrawFn, write: GraphWriter, x: str, scale: float, channels: int) -> str:
    depthwise = draw(st.booleans())
    outputs = channels if depthwise else draw(st.integers(1, 6))
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    scales = channel_scales(outputs)
    weight = write.weight((outputs, 1 if depthwise else channels, *kernel), scales)
    return write.node(
        "Conv",
        x,
        weight,
        write.bias(np.float32(scale) * scales),
        strides=[draw(st.integers(1, 2)) for _ in range(2)],
        dilations=[draw(st.integers(1, 2)) for _ in range(2)],
        pads=[draw(st.integers(0, 2)) for _ in range(4)],
        group=channels if depthwise else 1,
    )


def _transposed_convolution(draw: st.DrawFn, write: GraphWriter, x: str, scale: float, channels: int) -> str:
    group = draw(st.sampled_from([1, channels]))
    scales = channel_scales(draw(st.integers(1, 3)))
    strides, kernel = ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2))
    return write.node(
        "ConvTranspose",
        x,
        write.weight((channels, len(scales), *kernel), scales, axis=1),
        write.bias(np.float32(scale) * np.tile(scales, group)),
        strides=strides,
        output_padding=[draw(st.integers(0, stride - 1)) for stride in strides],
        pads=[draw(st.integers(0, 1)) for _ in range(4)],
        group=group,
    )


def _function(draw: st.DrawFn, write: GraphWriter, value: str) -> str:
    """A function of one operand, or an average or a sum over some axes.

    No slope gives ties: XNNPACK multiplies by 1 / scale where ONNX Runtime divides by it, which decides about them.
    """
    kind = draw(st.sampled_from(["LeakyRelu", "HardSwish", "Elu", "PRelu", "Relu", "Neg", "ReduceMean", "ReduceSum"]))
    if kind == "PRelu":
        return write.node(kind, value, write.constant(np.float32(draw(st.sampled_from([-0.3117, 0.2731, 1.7019])))))
    if kind == "LeakyRelu":
        return write.node(kind, value, alpha=draw(st.sampled_from([0.0137, 0.1093])))
    if kind.startswith("Reduce"):
        axes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True))
        return write.node(kind, value, write.constant(np.array(axes)), keepdims=1)
    return write.node(kind, value)


def _extreme(draw: st.DrawFn, write: GraphWriter, value: str) -> str:
    """The larger or smaller of each value and another one of the same scale."""
    other = write.node("Gather", value, write.constant(np.array([-1])), axis=draw(st.integers(0, 3)))
    params = write.nodes[-2].input[1:]
    again = write.node("DequantizeLinear", write.node("QuantizeLinear", other, *params), *params)
    chosen = write.node(draw(st.sampled_from(["Max", "Min"])), value, again)
    return write.node("DequantizeLinear", write.node("QuantizeLinear", chosen, *params), *params)


def _moved(draw: st.DrawFn, write: GraphWriter, value: str) -> str:
    """One operator that changes no value, with the scale kept: the zero-point is read off the pair in front."""
    point = write.nodes[-1].input[2]
    kind = draw(st.sampled_from(["Transpose", "Slice", "Gather", "Pad", "Tile", "Concat"]))
    if kind == "Transpose":
        moved = write.node("Transpose", value, perm=draw(st.permutations(range(4))))
    elif kind == "Slice":
        bounds = ([-1], [-99], [draw(st.integers(0, 3))], [-1])
        moved = write.node("Slice", value, *(write.constant(np.array(bound)) for bound in bounds))
    elif kind == "Gather":
        moved = write.node("Gather", value, write.constant(np.array([0, -1, 0])), axis=draw(st.integers(0, 3)))
    elif kind == "Pad":
        pads = np.array([draw(st.integers(0, 2)) for _ in range(8)])
        moved = write.node("Pad", value, write.constant(pads), mode=draw(st.sampled_from(["constant", "edge"])))
    elif kind == "Tile":
        moved = write.node("Tile", value, write.constant(np.array([draw(st.integers(1, 2)) for _ in range(4)])))
    else:
        moved = write.node("Concat", value, value, axis=draw(st.integers(0, 3)))
    scale = write.constant(np.float32(OUTPUT_SCALE))
    return write.node("DequantizeLinear", write.node("QuantizeLinear", moved, scale, point), scale, point)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(model=quantized_graphs())
def test_lower_equals_onnxruntime_when_graphs_are_random(model: onnx.ModelProto) -> None:
    feeds = random_feeds(model)
    (reference,), (actual,) = run_onnx(model, feeds).values(), run_tflite(lowered(model), feeds).values()
    assert actual.shape == reference.shape
    steps = np.abs(np.rint((actual - reference) / np.float32(OUTPUT_SCALE)))
    # ONNX Runtime averages and sums up floats, whose last bits decide about ties.
    assert steps.max() <= any(node.op_type in FLOAT_SUMS for node in model.graph.node)
