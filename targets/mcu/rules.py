"""What TFLite Micro asks of a file: operators that it knows, and shapes that are known before it runs.

Source: ``MicroMutableOpResolver`` in tensorflow/tflite-micro; ``tests/targets/mcu`` compares the list with the package.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeopt.errors import Refusal
from edgeopt.tflite.inspect import FileTensor, TfliteFile

_NAMES = """
ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS
BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV
DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER
GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND
LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD
PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR
RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH
SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
"""
OPERATORS = frozenset(_NAMES.split())


def refusals(file: TfliteFile) -> Iterator[Refusal]:
    """Yield what TFLite Micro does not run of a file: operators that it lacks, and dynamic shapes where they begin."""
    for name, tensor in file.inputs.items():
        if _is_dynamic(tensor):
            yield Refusal(
                name, "input", f"{_shape(tensor)} is dynamic, and memory is planned before the first inference"
            )
    for operator in file.operators:
        if operator.builtin not in OPERATORS:
            yield Refusal(operator.name, operator.builtin, "TFLite Micro has no such operator")
        elif any(map(_is_dynamic, operator.outputs)) and not any(map(_is_dynamic, operator.inputs)):
            yield Refusal(
                operator.name, operator.builtin, "it computes its shape, and memory is planned before it runs"
            )


def _is_dynamic(tensor: FileTensor) -> bool:
    return any(size < 0 for size in tensor.shape)


def _shape(tensor: FileTensor) -> str:
    return " x ".join("?" if size < 0 else str(size) for size in tensor.shape)
