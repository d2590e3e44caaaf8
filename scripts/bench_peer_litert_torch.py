"""Convert a network with litert-torch and ai-edge-quantizer: the peer of ``bench latency --peer-python``.

It runs in an environment of its own, which has these two packages and not edgeopt, and does what their manuals say:
convert with channels-last input, calibrate on the samples given, quantize by the static recipe (int8 weights and
activations). Its ranges are moving averages over the samples, so outputs beyond an average sample's are cut off.

    python bench_peer_litert_torch.py network.pt2 samples.npy peer.tflite

``network.pt2`` is a program that torch.export saved, with one image input; ``samples.npy`` is ``(N, 1, C, H, W)``
float32.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def convert(network: Path, samples: Any, path: Path) -> None:
    """Write the float .tflite file of a network that takes the samples, its input channels last."""
    import litert_torch  # type: ignore[import-not-found]
    import torch

    module = torch.export.load(network).module()
    wrapped = litert_torch.to_channel_last_io(module, args=[0])
    example = torch.from_numpy(samples[0]).permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(wrapped, (example,)).export(str(path))


def quantize(float_file: Path, samples: Any, path: Path) -> None:
    """Write the file with static int8 weights and activations, calibrated on every sample."""
    from ai_edge_quantizer import quantizer, recipe  # type: ignore[import-not-found]

    worker = quantizer.Quantizer(str(float_file))
    worker.load_quantization_recipe(recipe.static_wi8_ai8())
    statistics = worker.calibrate(_calibration_data(float_file, samples))
    path.write_bytes(worker.quantize(statistics).quantized_model)


def _calibration_data(float_file: Path, samples: Any) -> dict[str, list[dict[str, Any]]]:
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(model_path=str(float_file)).get_signature_list()
    ((key, signature),) = signatures.items()
    (name,) = signature["inputs"]
    return {key: [{name: np.ascontiguousarray(sample.transpose(0, 2, 3, 1))} for sample in samples]}


def main(arguments: list[str]) -> None:
    """Run from a command line."""
    network, samples_file, path = map(Path, arguments)
    samples = np.load(samples_file)
    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(folder, "float.tflite")
        convert(network, samples, float_file)
        quantize(float_file, samples, path)


if __name__ == "__main__":
    main(sys.argv[1:])
