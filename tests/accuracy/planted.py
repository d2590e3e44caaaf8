"""A small classifier as an ONNX file, with faults planted on request, and samples that it labels itself."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "quantize"))

from float_graphs import node, write_graph

from edgeopt.session import OnnxSession

NUM_HELD_OUT = 64

RECIPE = """
name = "planted"
[model]
path = "float.onnx"
[model.inputs.x]
shape = [1, 3, 8, 8]
[calibration]
dataset = "arrays"
num_samples = 32
num_held_out = 64
num_golden = 4
[calibration.options]
calibration = "calibration.npz"
held_out = "held_out.npz"
[accuracy]
metric = "top1"
max_drop = 0.05
precisions = ["int16", "float"]
[correct]
equalize = "off"
smooth = "off"
correct_bias = "off"
[parity]
min_sqnr_db = -100.0
min_cosine = -1.0
min_top1_agreement = 0.0
min_integer_coverage = 0.0
[latency]
compare = false
"""


def write_planted(
    folder: Path,
    *,
    outlier: bool = False,
    cancelling: bool = False,
    calibration_scale: float = 1.0,
    size: int = 8,
    recipe: str = RECIPE,
) -> Path:
    """Write the network, its samples and a recipe into a folder, and return the recipe.

    Args:
        folder: where to write.
        outlier: a channel behind the first convolution is 2,000 times as large as the others, and nothing reads it.
        cancelling: two of a channel's weights are 3,000 times as large as all others and cancel; nothing reads it.
        calibration_scale: what calibration samples are multiplied by; held-out ones are as they are.
        size: of a sample in pixels, and the number of channels.
        recipe: its text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    first, second = random.normal(size=(size, 3, 3, 3)), random.normal(size=(size, size, 1, 1))
    last = random.normal(size=(4, size**3 // 4)) / size
    if outlier:
        first[0] *= 2000
        second[:, 0] = 0
    if cancelling:  # channels 0 and 1 of a sample are the same
        first[0, 0, 1, 1], first[0, 1, 1, 1] = 3000, -3000
        second[:, 0] = 0
    constants = {"w1": first, "w2": second, "w3": last, "b3": np.zeros(4), "flat": np.array([1, -1], np.int64)}
    nodes = [
        node("Conv", "x w1", "c1", pads=[1, 1, 1, 1]), node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2"), node("Relu", "c2", "r2"),
        node("MaxPool", "r2", "p", kernel_shape=[2, 2], strides=[2, 2]), node("Reshape", "p flat", "f"),
        node("Gemm", "f w3 b3", "logits", transB=1),
    ]  # fmt: skip
    floats = {name: array if name == "flat" else array.astype(np.float32) for name, array in constants.items()}
    source = write_graph(folder, nodes, floats, shape=(1, 3, size, size), outputs=("logits",))
    session = OnnxSession(source.path)
    for seed, (split, count, scale) in enumerate(
        [("calibration", 32, calibration_scale), ("held_out", NUM_HELD_OUT, 1.0)]
    ):
        images = np.random.default_rng(seed + 1).random((count, 3, size, size), np.float32)
        images[:, 1] = images[:, 0]
        labels = [int(session.run({"x": image[np.newaxis]})["logits"].argmax()) for image in images]
        np.savez(folder / f"{split}.npz", x=images * np.float32(scale), labels=np.array(labels))
    (folder / "recipe.toml").write_text(recipe)
    return folder / "recipe.toml"
