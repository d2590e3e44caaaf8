"""Random small quantized graphs: LiteRT's answer against ONNX Runtime's."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tflite_graphs import GraphWriter, channel_scales
from tflite_runtimes import lowered, random_feeds, run_onnx, run_tflite

OUTPUT_SCALE = 0.11


@st.composite
def quantized_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A convolution of any window, and one to three operators behind it, everything quantized."""
    channels, height, width = draw(st.integers(1, 5)), draw(st.integers(5, 9)), draw(st.integers(5, 9))
    write = GraphWriter(draw(st.integers(0, 99)))
    scale, point = draw(st.sampled_from([0.02, 0.031])), draw(st.integers(-20, 20))
    x = write.quantized(write.input("x", (draw(st.integers(1, 2)), channels, height, width)), scale, point)
    y = _convolution(draw, write, x, scale, channels)
    value = write.quantized(y, OUTPUT_SCALE, draw(st.integers(-20, 20)))
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
    np.testing.assert_array_equal(np.rint((actual - reference) / np.float32(OUTPUT_SCALE)), 0)
