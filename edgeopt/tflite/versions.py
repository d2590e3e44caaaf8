"""The lowest version of each TFLite operator that expresses what we write, and the first runtime that knows it.

A runtime refuses a file with an operator version above its own, so a file that asks for no more than it needs runs on
old boards too. Sources: TensorFlow's ``lite/tools/versioning/op_version.cc`` and ``runtime_version.cc``.
"""

from __future__ import annotations

from collections.abc import Iterable

# operator -> (version for float32, version for int8)
_VERSIONS: dict[str, tuple[int, int]] = {
    "ADD": (1, 2),
    "AVERAGE_POOL_2D": (1, 2),
    "CONCATENATION": (1, 2),
    "CONV_2D": (1, 3),
    "DEPTHWISE_CONV_2D": (1, 3),
    "DEQUANTIZE": (1, 2),
    "DIV": (1, 1),
    "FULLY_CONNECTED": (1, 4),
    "HARD_SWISH": (1, 1),
    "LOGISTIC": (1, 2),
    "MAXIMUM": (1, 2),
    "MAX_POOL_2D": (1, 2),
    "MEAN": (1, 2),
    "MINIMUM": (1, 2),
    "MUL": (1, 2),
    "PAD": (1, 2),
    "PADV2": (1, 2),
    "QUANTIZE": (1, 1),
    "RELU": (1, 2),
    "RELU6": (1, 2),
    "RELU_N1_TO_1": (1, 1),
    "RESHAPE": (1, 1),
    "RESIZE_NEAREST_NEIGHBOR": (1, 2),
    "SLICE": (1, 2),
    "SOFTMAX": (1, 2),
    "STRIDED_SLICE": (1, 2),
    "SUB": (1, 2),
    "TANH": (1, 2),
    "TRANSPOSE": (1, 2),
}

# (operator, version) -> the first TensorFlow Lite release that has it, where it is later than 1.14.0
_FIRST_RUNTIME: dict[tuple[str, int], str] = {
    ("DIV", 2): "2.3.0",
    ("FULLY_CONNECTED", 5): "2.0.0",
    ("HARD_SWISH", 1): "1.15.0",
    ("MAXIMUM", 3): "2.3.0",
    ("MINIMUM", 3): "2.3.0",
    ("MUL", 3): "1.15.0",
    ("PAD", 4): "2.6.0",
    ("PADV2", 4): "2.6.0",
    ("RESIZE_NEAREST_NEIGHBOR", 3): "2.3.0",
    ("SLICE", 5): "2.5.0",
    ("STRIDED_SLICE", 4): "2.2.0",
    ("SUB", 3): "2.3.0",
    ("TRANSPOSE", 4): "2.3.0",
    ("TRANSPOSE", 6): "2.15.0",
}
_OLDEST_RUNTIME = "1.14.0"  # the release that brought per-channel int8


def operator_version(builtin: str, *, integer: bool) -> int:
    """Return the lowest version of ``builtin`` with float32 or int8 data; special options may need more."""
    return _VERSIONS[builtin][integer]


def minimum_runtime_version(operators: Iterable[tuple[str, int]]) -> str:
    """Return the first TensorFlow Lite release that knows every ``(operator, version)``."""
    releases = [_FIRST_RUNTIME.get(operator, _OLDEST_RUNTIME) for operator in operators]
    return max(releases, key=_release_number, default=_OLDEST_RUNTIME)


def _release_number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))
