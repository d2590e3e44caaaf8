"""Targets: every folder in ``targets/`` with ``target.toml`` (facts) and ``backend.py`` (two functions).

edgeopt never imports a target by name; a folder's existence registers it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, cast

from edgeopt.artifacts import LoweredModel, QdqModel
from edgeopt.errors import TargetError, did_you_mean
from edgeopt.inspection import Border, Inspection
from edgeopt.settings import Precision
from edgeopt.typed_toml import Decoder, read_toml

_PACKAGE = "edgeopt.targets"

Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class TargetSpec:
    """The facts of one target, as ``target.toml`` states them.

    ``precisions`` are what its kernels compute in (see :class:`~edgeopt.settings.QuantizeSettings`).
    ``round_to`` is how many channels its kernels handle at once: pruned widths are multiples of it. ``image_layout``
    is how its model takes and gives images, ``""`` as the network does. ``runtime_package`` is what its bundle is
    verified with here, and ``max_steps`` how far from the quantized reference its kernels may answer
    (``max_int16_steps``: with outputs of 16 bits; ``max_dynamic_steps``: behind activations that are quantized while
    the network runs). ``sparse_kernels`` are the patterns of zeros that its kernels skip. ``timed_here`` says whether
    what runs here is the device's own runtime, so that int8 and float can be timed against each other in it. A bundle
    for a ``microcontroller`` has its model as C arrays and a budget for memory, and is built only where it is named.
    """

    name: str
    title: str
    scheme: str
    precisions: tuple[Precision, ...]
    runtime: str
    runtime_package: str
    timed_here: bool
    model_file: str
    model_format: Literal["tflite", "onnx"]
    round_to: int
    max_steps: int
    max_int16_steps: int
    max_dynamic_steps: int
    max_built_in_steps: int
    sparse_kernels: tuple[Literal["2:4"], ...]
    image_layout: Literal["NCHW", "NHWC", ""]
    microcontroller: bool
    device_note: str
    folder: Path

    def files(self) -> tuple[Path, ...]:
        """Return the files that make up the target, for the cache."""
        return tuple(sorted(path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".pyc"))


@dataclass(frozen=True)
class LoweringRequest:
    """What a recipe asks of a lowering: the layout of images by name, and the largest dynamic batch."""

    input_layouts: Mapping[str, Layout]
    output_layouts: Mapping[str, Layout]
    max_batch: int


class Backend(Protocol):
    """What ``backend.py`` defines."""

    def lower(self, source: QdqModel, border: Border, request: LoweringRequest, out_dir: Path) -> LoweredModel:
        """Write the model file and what travels beside it; refuse (``LoweringError``) what cannot be exact."""

    def inspect(self, model: Path) -> Inspection:
        """Say what a model file holds and what of it runs on integers in the target's runtime."""


def discover_targets() -> Mapping[str, TargetSpec]:
    """Return the facts of every folder in ``targets/``, by name.

    Raises:
        TargetError: if a ``target.toml`` has unknown or missing keys or a value of the wrong type.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    roots = [Path(root) for root in (spec.submodule_search_locations if spec else None) or []]
    found = sorted(path.parent for root in roots for path in root.glob("*/target.toml"))
    return MappingProxyType({folder.name: read_target(folder) for folder in found})


def find_target(name: str) -> TargetSpec:
    """Return one target by name.

    Raises:
        TargetError: if there is none.
    """
    targets = discover_targets()
    if name not in targets:
        raise TargetError(f"there is no target {name!r}", hint=did_you_mean(name, list(targets)))
    return targets[name]


def read_target(folder: Path) -> TargetSpec:
    """Read the facts of one target folder.

    Raises:
        TargetError: if a key is unknown or missing, or a value has the wrong type.
    """
    where = f"targets/{folder.name}/target.toml"
    facts = read_toml(folder / "target.toml", source=where, error=TargetError)
    for key in ("name", "folder"):
        if key in facts:
            raise TargetError(f"{where}: {key!r} is the folder's to say")
    decoder = Decoder(where, folder, TargetError)
    spec = decoder.settings(TargetSpec, {**facts, "name": folder.name, "folder": str(folder)})
    if not (folder / "backend.py").is_file():
        raise TargetError(f"targets/{folder.name} has no backend.py")
    return spec


def load_backend(spec: TargetSpec) -> Backend:
    """Import a target's ``backend.py``.

    Raises:
        TargetError: if one of its functions is missing.
    """
    module = importlib.import_module(f"{_PACKAGE}.{spec.name}.backend")
    for function in ("lower", "inspect"):
        if not callable(getattr(module, function, None)):
            raise TargetError(f"targets/{spec.name}/backend.py has no function {function!r}")
    return cast(Backend, module)
