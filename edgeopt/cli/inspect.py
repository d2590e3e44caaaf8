"""``edgeopt inspect``: what is inside a bundle or a model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import bytes_text, percent_text, print_table, write_json
from edgeopt.cli.options import json_option

if TYPE_CHECKING:
    from edgeopt.inspection import Inspection

_EXAMPLES = """\b
Examples:
  edgeopt inspect build/mnist5k/arm64            a bundle
  edgeopt inspect model.tflite                   a model file: .tflite or .onnx
  edgeopt inspect model.onnx --json - | jq .operators
"""


@click.command(epilog=_EXAMPLES)
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, json_to: str | None) -> None:
    """Show what is inside PATH, a bundle or a model.

    Its size, operators, how much of the work runs on integers, and inputs and outputs with their scales.
    """
    from edgeopt.anatomy import inspect as inspect_path

    inspection = inspect_path(path)
    write_json(json_to, inspection.to_json())
    if json_to != "-":
        _show(inspection)


def _show(inspection: Inspection) -> None:
    click.echo(f"{inspection.kind}, {bytes_text(inspection.size_bytes)}")
    click.echo(f"{inspection.integer_operators} of {inspection.num_operators} operators run on integers")
    click.echo(f"{percent_text(inspection.integer_coverage)} of the multiply-accumulates run on integers\n")
    tensors = (
        (side, tensor.name, tensor.dtype, _shape(tensor.shape), _number(tensor.scale), _number(tensor.zero_point))
        for side, tensors in (("input", inspection.inputs), ("output", inspection.outputs))
        for tensor in tensors
    )
    print_table(("", "name", "dtype", "shape", "scale", "zero point"), tensors)
    click.echo()
    by_count = sorted(inspection.operators.items(), key=lambda item: (-item[1], item[0]))
    print_table(("operator", "count"), ((name, str(count)) for name, count in by_count))


def _shape(shape: tuple[int | str, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "scalar"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.9g}"
