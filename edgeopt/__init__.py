"""edgeopt: prune, distil and quantize a PyTorch network once; ship it as verified bundles.

    import edgeopt

    result = edgeopt.build("mnist5k", targets=["arm64", "x86"])
    report = edgeopt.verify(result.bundles[0].path)
    edgeopt.convert("model.onnx", "model.tflite")
    small = edgeopt.compress_network(network, [PruneSettings(pruning_ratio=0.5)], example_inputs, Path("pruned"))

Everything here is loaded when it is first used, so that ``import edgeopt`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from edgeopt.errors import EdgeoptError

if TYPE_CHECKING:
    from edgeopt.anatomy import inspect
    from edgeopt.compression import Compressed, compress_network
    from edgeopt.conversion import convert
    from edgeopt.inspection import Inspection
    from edgeopt.pipeline import BuildResult, build
    from edgeopt.recipe import LoadedRecipe, load_recipe
    from edgeopt.target_stages import BuiltBundle
    from edgeopt.verdict import ParityReport, verify

__all__ = [
    "BuildResult",
    "BuiltBundle",
    "Compressed",
    "EdgeoptError",
    "Inspection",
    "LoadedRecipe",
    "ParityReport",
    "build",
    "compress_network",
    "convert",
    "inspect",
    "load_recipe",
    "verify",
]

_HOME = {
    "BuildResult": "pipeline",
    "BuiltBundle": "target_stages",
    "Compressed": "compression",
    "Inspection": "inspection",
    "LoadedRecipe": "recipe",
    "ParityReport": "verdict",
    "build": "pipeline",
    "compress_network": "compression",
    "convert": "conversion",
    "inspect": "anatomy",
    "load_recipe": "recipe",
    "verify": "verdict",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
    return getattr(import_module(f"edgeopt.{_HOME[name]}"), name)
