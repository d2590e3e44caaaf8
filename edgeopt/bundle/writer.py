"""Writes a bundle: beside its place first, then there in one rename, and only if anything in it is new."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt import latency, parity
from edgeopt.artifacts import LoweredModel, canonical_json
from edgeopt.atomic import replace_folder
from edgeopt.bundle.firmware import write_firmware, write_runner
from edgeopt.bundle.golden import load_golden
from edgeopt.bundle.manifest import Manifest, complete_manifest
from edgeopt.bundle.readme import bundle_readme
from edgeopt.target import TargetSpec


def write_bundle(
    destination: Path,
    spec: TargetSpec,
    lowered: LoweredModel,
    golden: Path,
    model: Manifest,
    *,
    recipe: dict[str, object],
    dataset: dict[str, object],
    history: dict[str, object],
    corrections: Sequence[Mapping[str, object]],
    verdict: dict[str, object] | None,
    accuracy: dict[str, object] | None,
) -> Manifest:
    """Write a bundle to ``destination`` and return its manifest.

    A reader sees the old bundle or the new one, never half of one; a bundle that would come out the same is left
    alone, so that build systems which look at times do not rebuild what depends on it. Writers of one destination must
    take turns.
    """
    work = destination.with_name(f".{destination.name}.tmp")
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)  # what a killed build left
    work.mkdir()
    try:
        shutil.copyfile(lowered.path, work / spec.model_file)
        for extra in lowered.extra_files:
            shutil.copy(extra, work / extra.name)
        shutil.copyfile(golden, work / "golden.npz")
        shutil.copyfile(parity.__file__, work / "run_parity.py")
        shutil.copyfile(latency.__file__, work / "run_latency.py")
        if spec.model_format == "tflite":
            write_firmware(work, model, load_golden(golden))
        if spec.runtime_package == "ai-edge-litert":
            write_runner(work)
        manifest = _describe(
            work, model, recipe=recipe, dataset=dataset, history=history, corrections=corrections, parity=verdict,
            accuracy=accuracy, runtime_package=spec.runtime_package,
        )  # fmt: skip
        if not _is_same(destination, manifest):
            replace_folder(work, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _describe(work: Path, model: Manifest, **facts: Any) -> Manifest:
    """Write README.md and then bundle.json, which has the README's hash too."""
    (work / "README.md").write_text(bundle_readme(complete_manifest(model, folder=work, **facts)), encoding="utf-8")
    manifest = complete_manifest(model, folder=work, **facts)
    (work / "bundle.json").write_text(canonical_json(manifest), encoding="utf-8")
    return manifest


def _is_same(folder: Path, manifest: Manifest) -> bool:
    try:
        return bool(parity.read_bundle(str(folder))["digest"] == manifest["digest"])
    except parity.BundleDamaged:
        return False
