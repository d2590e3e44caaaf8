"""What the stages hand on: frozen records that own files on disk.

    TorchModel -compress-> -export-> FloatModel -calibrate-> Ranges -quantize-> QdqModel -lower-> LoweredModel

A stage never changes the artifact it was given. Paths are absolute while a build runs and never reach a bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.inspection import Border, Place

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """The name, dtype and shape of a graph input or output; a ``str`` dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class TorchModel:
    """A network as PyTorch builds it: the recipe's factory, then ``structure``, then ``weights``.

    The structure is never pickled: ``structure`` (JSON) lists what was done to the layers that the factory returns, and
    ``weights`` (safetensors) holds the state dict of the result. ``None`` means what the factory gives.
    """

    structure: Path | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class FloatModel:
    """The float ONNX graph, the reference for every later comparison."""

    path: Path
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class TensorRange:
    """The smallest and largest value that a tensor took on the calibration samples."""

    minimum: float
    maximum: float


@dataclass(frozen=True)
class Ranges:
    """The range chosen for each tensor, ``tensors``, beside the one ``observed``; ``path`` is the same as JSON."""

    path: Path
    tensors: Mapping[str, TensorRange]
    num_samples: int
    observed: Mapping[str, TensorRange] = field(default_factory=dict)


def read_ranges(path: Path) -> Ranges:
    """Read ``ranges.json``; its floats are in hexadecimal, which loses no bit."""
    content = json.loads(path.read_text(encoding="utf-8"))

    def bounds(of: str) -> dict[str, TensorRange]:
        return {name: TensorRange(*map(float.fromhex, item[of])) for name, item in content["tensors"].items()}

    return Ranges(path, bounds("chosen"), content["num_samples"], bounds("observed"))


@dataclass(frozen=True)
class QdqModel:
    """An ONNX graph with QuantizeLinear/DequantizeLinear pairs; ``scheme`` says under which rules."""

    path: Path
    scheme: str


@dataclass(frozen=True)
class Memory:
    """What a model takes of a microcontroller, in bytes: its tensors in RAM, itself in flash.

    The runtime's own code and data, the application's and the golden vectors are not counted.
    """

    ram_bytes: int
    flash_bytes: int


@dataclass(frozen=True)
class LoweredModel:
    """A file that a target's runtime loads, what it takes and gives, and what travels beside it in the bundle.

    ``notes`` is Markdown for the bundle's README: how the receiver uses the model on this target. ``tensors`` says
    where the file holds each value of the QDQ graph. ``memory`` is there where it is scarce: on a microcontroller.
    ``instruction_sets`` are those, by Linux's names, of which a CPU needs one to answer right; without any, all do.
    """

    path: Path
    border: Border
    extra_files: tuple[Path, ...] = ()
    notes: str = ""
    instruction_sets: tuple[str, ...] = ()
    tensors: Mapping[str, Place] = field(default_factory=dict)
    memory: Memory | None = None


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON that is the same text for the same value: sorted keys, no NaN, two-space indent, final newline."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def digest_of(parts: Iterable[str]) -> str:
    """Return one SHA-256 over several strings, each with its length so that they cannot run together."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.hexdigest()
