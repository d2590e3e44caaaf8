"""Print the tables of operators and kernels as OPERATORS.md; the tables in the code are what they come from."""

from __future__ import annotations

from pathlib import Path

from edgeopt.tflite.operators import OPERATORS
from edgeopt.tflite.step import Entry, never
from edgeopt.tflite.versions import _FIRST_RUNTIME, _OLDEST_RUNTIME, _VERSIONS

DOCUMENT = Path(__file__).parents[2] / "edgeopt" / "tflite" / "OPERATORS.md"

HEAD = """# Operators and kernels

Written by `python tests/tflite/operator_table.py`; a test compares it with the code.

## Operators

After the rewrites of `edgeopt/tflite/normal_form.py`, which turn all other ONNX operators into these. An operator
between DequantizeLinear and QuantizeLinear runs in integers if its rule allows the scales, and else in float between
DEQUANTIZE and QUANTIZE. The operators' docstrings say why, with figures.

| in integers | operators |
|---|---|
"""

MIDDLE = """
## Kernels

Those that we use on integers: the lowest version for each dtype of the data, and the first release of TensorFlow Lite
that has them all. int16 is for activations beside int8 weights. With a dash we compute in float.

| kernel | float32 | int8 | int16 | release |
|---|---|---|---|---|
"""


def table() -> str:
    rules: dict[str, list[str]] = {}
    for (domain, name), entry in OPERATORS.items():
        rules.setdefault(_rule(entry), []).append(_name(domain, name))
    operators = "".join(f"| {rule} | {', '.join(sorted(names))} |\n" for rule, names in sorted(rules.items()))
    return HEAD + operators + MIDDLE + "".join(_kernel(name) for name in sorted(_VERSIONS))


def _name(domain: str, name: str) -> str:
    return f"{name} over axes" if domain and ("", name) in OPERATORS else name


def _rule(entry: Entry) -> str:
    if entry.integer is never:
        return "Never."
    words = " ".join((entry.integer.__doc__ or "").split())
    return f"{words} Give the input's scale." if entry.keeps_scale else words


def _kernel(name: str) -> str:
    versions = [_VERSIONS[name].get(dtype) for dtype in ("float32", "int8", "int16")]
    if not any(versions[1:]):
        return ""
    releases = [_FIRST_RUNTIME.get(f"{name}/{version}", _OLDEST_RUNTIME) for version in versions if version]
    latest = max(releases, key=lambda release: [int(part) for part in release.split(".")])
    return f"| {name} | {' | '.join(str(version or '-') for version in versions)} | {latest} |\n"


if __name__ == "__main__":
    DOCUMENT.write_text(table())
