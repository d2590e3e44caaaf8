"""Convert a network with onnx2tf: a peer of ``bench latency --peer-python``.

It runs in an environment of its own, which has onnx2tf and not edgeopt, and does what its manual says for full integer
quantization: int8 inputs and outputs, weights by channel, ranges from the samples given. Version 1 goes through
TensorFlow's converter, version 2 writes its file itself.

    python bench_peer_onnx2tf.py network.onnx samples.npy peer.tflite

``network.onnx`` is the float graph, with one image input; ``samples.npy`` is ``(N, 1, C, H, W)`` float32. It is
run in a scratch folder, with noise in the place of the pictures that version 1 would download to probe a network with.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

_PICTURES = "calibration_image_sample_data_20x128x128x3_float32.npy"  # what it looks for where it is run


def write_pictures() -> None:
    """Put noise where onnx2tf 1 looks for the pictures that it otherwise downloads."""
    np.save(_PICTURES, np.random.default_rng(0).random((20, 128, 128, 3), np.float32))


def convert(network: Path, samples: Path, path: Path) -> None:
    """Write the int8 file of a network, its input channels last."""
    import onnx
    import onnx2tf  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        write_pictures()
        copy = shutil.copy(network, Path(scratch, "network.onnx"))  # it rewrites the file it is given
        images = Path(scratch, "images.npy")
        np.save(images, np.ascontiguousarray(np.load(samples)[:, 0].transpose(0, 2, 3, 1)))
        (name,) = (value.name for value in onnx.load(network).graph.input)
        onnx2tf.convert(
            input_onnx_file_path=str(copy),
            output_folder_path=str(Path(scratch, "out")),
            output_integer_quantized_tflite=True,
            quant_type="per-channel",
            custom_input_op_name_np_data_path=[[name, str(images), [[[[0.0]]]], [[[[1.0]]]]]],
            input_quant_dtype="int8",
            output_quant_dtype="int8",
            non_verbose=True,
            verbosity="error",
        )
        shutil.copy(Path(scratch, "out", "network_full_integer_quant.tflite"), path)


if __name__ == "__main__":
    convert(*(Path(argument).resolve() for argument in sys.argv[1:]))
