"""Constants as float16 where that loses nothing: half the file. LiteRT unpacks them when it loads the model.

Source: TensorFlow Lite, post-training float16 quantization.
"""

from __future__ import annotations

import numpy as np

from edgeopt.tflite.program import Operator, Program, Tensor

_FEWEST = 64  # elements, below which the operator that unpacks them is larger than what it saves


def halve_constants(program: Program) -> None:
    """Store every large float32 constant that float16 holds exactly as one, behind a DEQUANTIZE."""
    read = dict.fromkeys(tensor for operator in program.operators for tensor in operator.inputs if tensor is not None)
    unpacking = []
    for tensor in read:
        array = tensor.data
        if array is None or array.dtype != np.float32 or array.size < _FEWEST or (array.astype("e") != array).any():
            continue
        tensor.data, half = None, array.astype("e")
        packed = Tensor(f"{tensor.name}_half", tensor.shape, half.dtype, data=half)
        unpacking.append(Operator("DEQUANTIZE", 3, (packed,), (tensor,)))
    program.operators[:0] = unpacking
