"""``edgeopt convert``: one ONNX file to one TFLite file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from edgeopt.cli.console import bytes_text, write_json
from edgeopt.cli.options import json_option

Layout = Literal["NCHW", "NHWC"]

_EXAMPLES = """\b
Examples:
  edgeopt convert model.onnx model.tflite                            float or QDQ, its own scales kept
  edgeopt convert model.onnx model.tflite --layout image=NHWC        images as the board's camera has them
  edgeopt convert model.onnx model.tflite --input-shape x=1,3,48,192 sizes that the file leaves open
  edgeopt convert model.onnx model.tflite --float-io --json -
"""


def _layouts(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Layout]:
    layouts = {}
    for value in values:
        name, _, layout = value.rpartition("=")
        if not name or layout not in ("NCHW", "NHWC"):
            raise click.BadParameter(f"got {value!r}, expected NAME=NCHW or NAME=NHWC")
        layouts[name] = cast(Layout, layout)
    return layouts


def _shapes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"got {value!r}, expected NAME=SIZE,SIZE,...")
    return shapes


@click.command(epilog=_EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.argument("destination", type=click.Path(path_type=Path), metavar="OUT.tflite")
@click.option("--layout", "layouts", multiple=True, callback=_layouts, metavar="INPUT=NHWC", help="Layout of an input.")
@click.option(
    "--output-layout", "output_layouts", multiple=True, callback=_layouts, metavar="OUTPUT=NHWC",
    help="Layout of an output.",
)  # fmt: skip
@click.option(
    "--input-shape", "shapes", multiple=True, callback=_shapes, metavar="INPUT=1,3,48,192",
    help="Sizes of an input with dynamic axes, in the order of the ONNX file.",
)  # fmt: skip
@click.option("--float-io", is_flag=True, help="Let quantized inputs and outputs be float tensors.")
@json_option
def convert(
    source: Path,
    destination: Path,
    layouts: dict[str, Layout],
    output_layouts: dict[str, Layout],
    shapes: dict[str, tuple[int, ...]],
    float_io: bool,
    json_to: str | None,
) -> None:
    """Convert an ONNX model to TFLite, exactly or not at all.

    Every node that TFLite cannot express exactly is named, and then nothing is written.
    """
    from edgeopt.conversion import convert as convert_file

    inspection = convert_file(
        source,
        destination,
        input_shapes=shapes,
        input_layouts=layouts,
        output_layouts=output_layouts,
        integer_io=not float_io,
    )
    write_json(json_to, inspection.to_json())
    if json_to != "-":
        click.echo(
            f"{destination}: {bytes_text(inspection.size_bytes)}, "
            f"{inspection.integer_operators} of {inspection.num_operators} operators run on integers"
        )
