from __future__ import annotations

import numpy as np
import pytest
from tflite_graphs import GraphWriter, small_residual_net
from tflite_runtimes import file_of, lowered

from edgeopt.errors import ModelError
from edgeopt.tflite.inspect import inspect_tflite, read_tflite


def test_read_tflite_counts_macs_by_hand_when_net_is_known():
    by_kind: dict[str, int] = {}
    for operator in file_of(small_residual_net()).operators:
        by_kind[operator.builtin] = by_kind.get(operator.builtin, 0) + operator.macs
    stem, pointwise, classifier = 8 * 8 * 8 * 27, 8 * 8 * 8 * 8, 8 * 10
    assert (by_kind["CONV_2D"], by_kind["FULLY_CONNECTED"]) == (stem + pointwise, classifier)
    assert by_kind["DEPTHWISE_CONV_2D"] == 8 * 8 * 8 * 9
    assert sum(by_kind.values()) == stem + pointwise + classifier + 8 * 8 * 8 * 9


def test_read_tflite_gives_the_integer_share_of_macs_when_half_the_net_is_float():
    write = GraphWriter()
    x = write.quantized(write.input("x", (1, 8)), 0.02, 0)
    scales = np.full(8, 0.01, np.float32)
    hidden = write.quantized(write.node("Gemm", x, write.weight((8, 8), scales), transB=1), 0.1, 0)
    write.output(write.node("Gemm", hidden, write.constant(np.eye(8, 24, dtype=np.float32))))
    file = file_of(write.model())
    assert file.integer_coverage == pytest.approx(64 / (64 + 192))
    assert [op.builtin for op in file.operators if not op.is_integer] == ["DEQUANTIZE", "FULLY_CONNECTED"]


def test_read_tflite_puts_weight_scales_on_the_channel_axis_when_convolutions_are_per_channel():
    axes = {op.builtin: op.inputs[1].axis for op in file_of(small_residual_net()).operators if op.macs}
    assert axes == {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}


def test_inspect_tflite_reports_borders_when_the_file_is_ours(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(lowered(small_residual_net(batch="batch"), input_layouts={"image": "NHWC"}))
    found = inspect_tflite(path)
    assert found.integer_coverage == 1.0
    assert found.num_operators == found.integer_operators == sum(found.operators.values())
    assert (found.inputs[0].name, found.inputs[0].dtype, found.inputs[0].shape) == (
        "image",
        "int8",
        ("batch", 16, 16, 3),
    )
    assert (found.outputs[0].name, found.outputs[0].zero_point) == ("logits", 4)
    assert found.size_bytes == path.stat().st_size


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0" * 64])
def test_read_tflite_refuses_when_it_is_another_kind_of_file(content):
    with pytest.raises(ModelError, match="identifier 'TFL3' is missing"):
        read_tflite(content)


def test_constants_are_aligned_to_16_bytes_when_sizes_are_odd():
    write = GraphWriter()
    random = np.random.default_rng(0)
    value, constants = write.input("x", (1, 5)), []
    for columns in (5, 1, 5, 1, 5, 5):
        constants.append(random.normal(size=(1, columns)).astype(np.float32))
        value = write.node("Add", value, write.constant(constants[-1]))
    write.output(value)
    content = lowered(write.model())
    assert [content.index(constant.tobytes()) % 16 for constant in constants] == [0] * len(constants)
