"""The kernels that we use: what each TFLite operator computes on, its lowest version for that, and who knows it.

A runtime refuses a file with an operator version above its own, so a file that asks for no more than it needs runs on
old boards too. Sources: LiteRT's ``tflite/tools/versioning/op_version.cc`` and ``runtime_version.cc``, and for the
dtypes ``tflite/kernels/*.cc``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeopt.tflite.program import RefusedError

_NUMBERS = {"float32": 1, "int32": 1, "int64": 1}
_WITH_INT8 = {**_NUMBERS, "int8": 2}
_ANYTHING = {**_WITH_INT8, "bool": 1}
_INTEGERS = {"int8": 2, "int16": 3}

_FLOAT_ONLY = (
    "ATAN2 BATCH_MATMUL CEIL COS EXP FLOOR GELU HARD_SWISH LEAKY_RELU LOG LOG_SOFTMAX PRELU RESIZE_BILINEAR ROUND "
    "RSQRT SIN SQRT"
)
_ALSO_INT8 = "DEPTH_TO_SPACE GREATER GREATER_EQUAL LESS LESS_EQUAL SPACE_TO_DEPTH TOPK_V2"
_LOGICAL = "LOGICAL_AND LOGICAL_NOT LOGICAL_OR REDUCE_ALL REDUCE_ANY"

# operator -> dtype of its first operand that is data -> version
_VERSIONS: Mapping[str, Mapping[str, int]] = {
    **{name: {"float32": 1} for name in _FLOAT_ONLY.split()},
    **dict.fromkeys(_ALSO_INT8.split(), _WITH_INT8),
    **{name: {"bool": 1} for name in _LOGICAL.split()},
    "ABS": {"float32": 1, "int32": 5},
    "ADD": {"float32": 1, **_INTEGERS, "int32": 1, "int64": 4},
    "ARG_MAX": {"float32": 1, "int8": 2, "int32": 1, "bool": 3},
    "ARG_MIN": {"float32": 1, "int8": 2, "int32": 1, "bool": 3},
    "AVERAGE_POOL_2D": {"float32": 1, **_INTEGERS},
    "BITCAST": {**_NUMBERS, "int8": 1},
    "BITWISE_XOR": {"int8": 1, "int32": 1},
    "CAST": {**_NUMBERS, "bool": 1, "int8": 3},
    "CONCATENATION": {**_ANYTHING, "int16": 3},
    "CONV_2D": {"float32": 1, "int8": 3, "int16": 4},
    "CUMSUM": _NUMBERS,
    "DEPTHWISE_CONV_2D": {"float32": 1, "int8": 3, "int16": 5},
    "DEQUANTIZE": _INTEGERS,
    "DIV": {"float32": 1, "int32": 1},
    "ELU": {"float32": 1, "int8": 1},
    "EQUAL": _ANYTHING,
    "FLOOR_DIV": {"float32": 2, "int32": 1, "int64": 1},
    "FLOOR_MOD": _NUMBERS,
    "FULLY_CONNECTED": {"float32": 1, "int8": 4, "int16": 7},
    "GATHER": {**_WITH_INT8, "int16": 4, "bool": 3},
    "GATHER_ND": {**_NUMBERS, "int8": 1, "bool": 5},
    "LOGISTIC": {"float32": 1, "int8": 2},
    "MAXIMUM": {**_WITH_INT8, "int16": 4},
    "MAX_POOL_2D": {"float32": 1, **_INTEGERS},
    "MEAN": {"float32": 1, **_INTEGERS},
    "MINIMUM": {**_WITH_INT8, "int16": 4},
    "MIRROR_PAD": {**_WITH_INT8, "int16": 3},
    "MUL": {"float32": 1, "int8": 2, "int16": 4, "int32": 1, "int64": 5},
    "NEG": _NUMBERS,
    "NON_MAX_SUPPRESSION_V4": {"float32": 1},
    "NOT_EQUAL": _ANYTHING,
    "PAD": {**_WITH_INT8, "int16": 3},
    "PADV2": {**_WITH_INT8, "int16": 3},
    "POW": {"float32": 1, "int32": 1},
    "QUANTIZE": {"float32": 1, "int16": 2},
    "REDUCE_MAX": {**_WITH_INT8, "int16": 3},
    "REDUCE_MIN": {**_WITH_INT8, "int16": 3},
    "REDUCE_PROD": _NUMBERS,
    "RELU": {"float32": 1, "int8": 2},
    "RELU6": {"float32": 1, "int8": 2},
    "RELU_N1_TO_1": {"float32": 1, "int8": 1},
    "RESHAPE": {**_NUMBERS, "bool": 1, "int8": 1, "int16": 1},
    "RESIZE_NEAREST_NEIGHBOR": {"float32": 1, "int8": 2, "int16": 4},
    "REVERSE_SEQUENCE": _NUMBERS,
    "REVERSE_V2": {**_NUMBERS, "int8": 3, "bool": 2},
    "SCATTER_ND": {**_NUMBERS, "int8": 1, "bool": 1},
    "SELECT_V2": {**_NUMBERS, "int8": 1, "bool": 1},
    "SIGN": {"float32": 1, "int32": 2},
    "SLICE": {**_ANYTHING, "int16": 4},
    "SOFTMAX": {"float32": 1, "int8": 2},
    "SQUARED_DIFFERENCE": {"float32": 1, "int32": 1},
    "STRIDED_SLICE": {**_WITH_INT8, "int16": 1, "bool": 3},
    "SUB": {"float32": 1, "int8": 2, "int16": 5, "int32": 1, "int64": 4},
    "SUM": _WITH_INT8,
    "TANH": {"float32": 1, "int8": 2},
    "TILE": {**_NUMBERS, "bool": 1, "int8": 3},
    "TRANSPOSE": {**_WITH_INT8, "int16": 5, "bool": 3},
    "TRANSPOSE_CONV": {"float32": 1, "int8": 2, "int16": 2},
}

# release of TensorFlow Lite -> the operators/versions that it brought, as far as they are later than 1.14.0
_BROUGHT_BY: Mapping[str, str] = {
    "1.15.0": "DEQUANTIZE/3 GATHER/3 HARD_SWISH/1 MUL/3 QUANTIZE/2 SUM/2 TRANSPOSE/3",
    "2.0.0": "FULLY_CONNECTED/5",
    "2.1.0": "DEPTH_TO_SPACE/1 NON_MAX_SUPPRESSION_V4/1 RELU/2 SCATTER_ND/1 STRIDED_SLICE/3",
    "2.2.0": "RESIZE_BILINEAR/3 REVERSE_V2/2 SELECT_V2/1 STRIDED_SLICE/4 TRANSPOSE_CONV/2",
    "2.3.0": (
        "AVERAGE_POOL_2D/3 BATCH_MATMUL/1 CONCATENATION/3 CONV_2D/4 DEPTHWISE_CONV_2D/5 DIV/2 "
        "FULLY_CONNECTED/7 MAXIMUM/3 MAXIMUM/4 MAX_POOL_2D/3 MINIMUM/3 MINIMUM/4 MIRROR_PAD/2 MUL/4 "
        "RESIZE_NEAREST_NEIGHBOR/3 SUB/3 TRANSPOSE/4 TRANSPOSE_CONV/3"
    ),
    "2.4.0": (
        "ADD/3 CONV_2D/5 CUMSUM/1 GATHER/4 MEAN/3 PAD/3 PADV2/3 RESIZE_NEAREST_NEIGHBOR/4 SLICE/4 SUB/4 SUB/5 "
        "TRANSPOSE/5"
    ),
    "2.5.0": "DEPTH_TO_SPACE/2 REDUCE_MAX/3 REDUCE_MIN/3 REVERSE_V2/3 SLICE/5",
    "2.6.0": "ADD/4 MUL/5 PAD/4 PADV2/4 REDUCE_ALL/1",
    "2.8.0": "CAST/3 TILE/3",
    "2.9.0": "ARG_MAX/3 ARG_MIN/3 CONV_2D/6 GELU/1",
    "2.10.0": "ATAN2/1",
    "2.11.0": "SIGN/1",
    "2.12.0": "ABS/5 MIRROR_PAD/3 SIGN/2 TRANSPOSE/6",
    "2.13.0": "BITCAST/1 BITWISE_XOR/1",
    "2.14.0": "FULLY_CONNECTED/10",  # runtime_version.cc says 2.11, but 2.12 refuses it and 2.14 takes it
    "2.16.0": "GATHER_ND/5",
    "2.17.0": "FULLY_CONNECTED/12",
}
_OLDEST_RUNTIME = "1.14.0"  # the release that brought per-channel int8
_FIRST_RUNTIME = {operator: release for release, operators in _BROUGHT_BY.items() for operator in operators.split()}


def operator_version(builtin: str, dtype: str) -> int:
    """Return the lowest version of ``builtin`` that computes on ``dtype``; special options may need more.

    Raises:
        RefusedError: if there is no kernel for it.
    """
    version = _VERSIONS[builtin].get(dtype)
    if version is None:
        raise RefusedError(f"TFLite's {builtin} has no kernel for {dtype}")
    return version


def minimum_runtime_version(operators: Iterable[tuple[str, int]]) -> str:
    """Return the first TensorFlow Lite release that knows every ``(operator, version)``."""
    releases = {_FIRST_RUNTIME.get(f"{builtin}/{version}", _OLDEST_RUNTIME) for builtin, version in operators}
    return max(releases, key=_release_number, default=_OLDEST_RUNTIME)


def _release_number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))
