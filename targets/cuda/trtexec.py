"""The ``trtexec`` command line that builds an engine from a bundle.

TensorRT 11 types every network by its graph and has no precision flags. TensorRT 10 does so with ``--stronglyTyped``,
which is what explicit quantization wants. ``build_engine.sh`` finds out which release it has.

Source: NVIDIA TensorRT documentation, "Explicit Quantization" (use strong typing) and "Migrating trtexec Usage from
TensorRT 10.x to 11.x".
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from edgeopt.errors import UsageError

from .profile import Shape, ShapeProfile


def trtexec_command(model: str, engine: str, profiles: Mapping[str, ShapeProfile]) -> str:
    """Return the line that builds ``engine`` from ``model`` with TensorRT 10, quoted for a POSIX shell.

    Args:
        model: the ONNX file's name.
        engine: the engine file's name.
        profiles: the optimization profile of each input with a dynamic batch; none for a fixed batch.

    Raises:
        UsageError: if an input's name holds a character that separates shapes in ``trtexec``.
    """
    words = ["trtexec", f"--onnx={model}", f"--saveEngine={engine}", "--stronglyTyped", *shape_flags(profiles)]
    return shlex.join(words)


def shape_flags(profiles: Mapping[str, ShapeProfile]) -> list[str]:
    """Return ``trtexec``'s shape flags, one each for the smallest, the best and the largest shapes.

    ``build_engine.sh`` reads them from ``engine_shapes.txt`` beside it, one a line.

    Raises:
        UsageError: if an input's name holds a character that separates shapes in ``trtexec``.
    """
    if not profiles:
        return []
    return [
        f"--minShapes={_shapes({name: profile.minimum for name, profile in profiles.items()})}",
        f"--optShapes={_shapes({name: profile.optimum for name, profile in profiles.items()})}",
        f"--maxShapes={_shapes({name: profile.maximum for name, profile in profiles.items()})}",
    ]


def _shapes(shapes: Mapping[str, Shape]) -> str:
    for name in shapes:
        if set(name) & set(":,'\n"):
            raise UsageError(
                f"trtexec cannot be told the shape of input {name!r}",
                hint="rename the input: no ':', ',', quote or line break",
            )
    return ",".join(f"{name}:{'x'.join(str(size) for size in shape)}" for name, shape in shapes.items())
