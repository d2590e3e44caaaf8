"""``bundle.json``: everything that is to be known about a bundle, the same bytes for the same build."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeopt.artifacts import LoweredModel, sha256_file
from edgeopt.inspection import Inspection, Place
from edgeopt.parity import SCHEMA_VERSION, manifest_digest
from edgeopt.settings import ParityLimits
from edgeopt.target import TargetSpec

if TYPE_CHECKING:
    from edgeopt.bundle.weight_gains import WeightGain

_TOOLS = (
    "ai-edge-litert", "lightning-fabric", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "safetensors",
    "torch", "torch-pruning",
)  # fmt: skip

Manifest = dict[str, Any]


def describe_model(
    name: str,
    spec: TargetSpec,
    lowered: LoweredModel,
    inspection: Inspection,
    limits: ParityLimits,
    tensors: Mapping[str, Place],
    labels: Mapping[str, Sequence[str]] = MappingProxyType({}),
    weights: Sequence[WeightGain] = (),
) -> Manifest:
    """Return the part of a manifest that is known before a verdict: the model, its border, class names, the limits.

    ``tensors`` is where the model file holds each tensor of the network (see :mod:`edgeopt.quantize.names`), and
    ``weights`` what became of those that compression made sparse, shared or coarse.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "target": spec.name,
        "model": {
            "file": spec.model_file,
            "format": spec.model_format,
            "runtime": spec.runtime,
            "runtime_package": spec.runtime_package,
            "scheme": spec.scheme,
            "device_note": spec.device_note,
            "instruction_sets": lowered.instruction_sets,
            "notes": lowered.notes,
        },
        "inputs": [asdict(facts) for facts in lowered.border.inputs],
        "outputs": [asdict(facts) for facts in lowered.border.outputs],
        "labels": dict(labels),
        "limits": asdict(limits),
        "integer_coverage": inspection.integer_coverage,
        "operators": dict(inspection.operators),
        "num_operators": inspection.num_operators,
        "integer_operators": inspection.integer_operators,
        "float_operators": list(inspection.float_operators),
        "num_macs": inspection.num_macs,
        "tensors": {name: asdict(place) for name, place in tensors.items()},
        "weights": [asdict(gain) for gain in weights],
        "memory": None if lowered.memory is None else asdict(lowered.memory),
    }
    # What is hashed and judged must be what a reader of the JSON gets: lists, not tuples.
    return json.loads(json.dumps(content))  # type: ignore[no-any-return]


def complete_manifest(
    model: Manifest,
    *,
    recipe: Mapping[str, Any],
    dataset: Mapping[str, Any],
    history: Mapping[str, Any],
    corrections: Sequence[Mapping[str, Any]],
    parity: Mapping[str, Any] | None,
    accuracy: Mapping[str, Any] | None,
    folder: Path,
    runtime_package: str,
) -> Manifest:
    """Add provenance, the verdict and the hash of every file in ``folder``, and seal the manifest with its digest.

    Args:
        model: from :func:`describe_model`.
        recipe: as resolved, every default written out.
        dataset: the facts of the calibration set, preprocessing among them.
        history: what training, pruning and distilling reported.
        corrections: what each correction brought.
        parity: the verdict on all held-out samples; ``None`` if the build did not verify.
        accuracy: what the contract says; ``None`` if the recipe has none or the build did not verify.
        folder: the bundle so far, without ``bundle.json``.
        runtime_package: the package that the bundle was run with.
    """
    manifest: Manifest = dict(model)
    manifest["recipe"] = dict(recipe)
    manifest["calibration"] = {key: value for key, value in dataset.items() if key != "preprocessing"}
    manifest["preprocessing"] = dataset.get("preprocessing", {})
    manifest["history"] = dict(history)
    manifest["corrections"] = [dict(gain) for gain in corrections]
    manifest["parity"] = None if parity is None else dict(parity)
    manifest["accuracy"] = None if accuracy is None else dict(accuracy)
    manifest["tool_versions"] = {"edgeopt": _version("edgeopt"), **{name: _version(name) for name in _TOOLS}}
    manifest["runtime_versions_tested"] = {} if parity is None else {runtime_package: _version(runtime_package)}
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest["digest"] = manifest_digest(manifest)
    return manifest


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def tool_versions(packages: Sequence[str]) -> tuple[str, ...]:
    """Return ``name==version`` of packages, for a cache key."""
    return tuple(f"{name}=={_version(name)}" for name in packages)
