"""NonMaxSuppression: as many rows as the data asks for, and the rows that ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tflite_graphs import GraphWriter
from tflite_runtimes import lowered, run_onnx, run_tflite

from edgeopt.errors import LoweringError

BATCHES, CLASSES, BOXES, LIMIT = 2, 3, 60, 20


def suppression(*, center_point_box: int = 0, overlap: float = 0.3) -> onnx.ModelProto:
    write = GraphWriter()
    names = [write.input("boxes", (BATCHES, BOXES, 4)), write.input("scores", (BATCHES, CLASSES, BOXES))]
    limits = [write.constant(np.int64(LIMIT)), write.constant(np.float32(overlap))]
    threshold = write.constant(np.float32(0.4))
    write.node("NonMaxSuppression", *names, *limits, threshold, name="y", center_point_box=center_point_box)
    write.outputs.append(helper.make_tensor_value_info("y", TensorProto.INT64, None))
    return write.model()


def boxes_and_scores(center_point_box: int, highest: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    centre, size = random.uniform(0, 8, (BATCHES, BOXES, 2)), random.uniform(1, 3, (BATCHES, BOXES, 2))
    first, second = (centre, size) if center_point_box else (centre - size / 2, centre + size / 2)
    scores = random.uniform(0, highest, (BATCHES, CLASSES, BOXES))
    return {"boxes": np.concatenate([first, second], -1).astype(np.float32), "scores": scores.astype(np.float32)}


@pytest.mark.parametrize("center_point_box", [0, 1])
@pytest.mark.parametrize(("highest", "rows"), [(1.0, range(30, 121)), (0.42, range(1, 60)), (0.3, range(1))])
def test_suppression_gives_the_rows_of_onnxruntime_when_their_number_varies(center_point_box, highest, rows):
    model, feeds = suppression(center_point_box=center_point_box), boxes_and_scores(center_point_box, highest)
    (reference,) = run_onnx(model, feeds).values()
    (actual,) = run_tflite(lowered(model), feeds).values()
    assert len(reference) in rows
    np.testing.assert_array_equal(actual, reference)


def test_suppression_takes_the_first_as_onnxruntime_does_when_scores_are_equal():
    model, feeds = suppression(), boxes_and_scores(0, 1.0)
    feeds["scores"] = np.rint(feeds["scores"] * 4) / np.float32(4)
    (reference,) = run_onnx(model, feeds).values()
    (actual,) = run_tflite(lowered(model), feeds).values()
    assert len(reference) > 10
    np.testing.assert_array_equal(actual, reference)


def test_suppression_is_refused_when_an_overlap_of_1_is_allowed():
    with pytest.raises(LoweringError, match="an overlap of 1"):
        lowered(suppression(overlap=1.0))
