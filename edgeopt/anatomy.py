"""Looks into a bundle or a model file and says what a runtime will execute of it."""

from __future__ import annotations

from pathlib import Path

from edgeopt import parity
from edgeopt.errors import BundleError, UsageError
from edgeopt.inspection import Inspection
from edgeopt.stage import stage
from edgeopt.target import find_target, load_backend


def inspect(path: str | Path) -> Inspection:
    """Count operators and integer kernels, and describe what goes in and comes out.

    Args:
        path: a bundle, a ``.tflite`` file, or a ``.onnx`` file, which is judged by the graph that ONNX Runtime runs.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: it is something else.
        TargetError: the bundle is for a target that is not installed here.
    """
    with stage("inspect"):
        given = Path(path)
        if given.is_dir():
            return _inspect_bundle(given)
        if not given.is_file():
            raise UsageError(f"there is no file or bundle {given}")
        if given.suffix == ".tflite":
            from edgeopt.tflite.inspect import inspect_tflite

            return inspect_tflite(given)
        if given.suffix == ".onnx":
            from edgeopt.quantize.audit import audit_onnxruntime

            return audit_onnxruntime(given, "ONNX Runtime")
        raise UsageError(
            f"{given.name} is neither a bundle nor a .tflite or .onnx file",
            hint="a bundle is a folder with bundle.json",
        )


def _inspect_bundle(folder: Path) -> Inspection:
    try:
        manifest = parity.read_bundle(str(folder))
    except parity.BundleDamaged as error:
        raise BundleError(f"{folder}: {error}", hint="build it again, or take it from where it was built") from error
    return load_backend(find_target(manifest["target"])).inspect(folder / manifest["model"]["file"])
