"""Writes a bundle: beside its place first, then there in one rename, and only if anything in it is new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgeopt import parity
from edgeopt.artifacts import LoweredModel, canonical_json
from edgeopt.atomic import replace_folder
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
    verdict: dict[str, object] | None,
) -> Manifest:
    """Write a bundle to ``destination`` and return its manifest.

    A reader sees the old bundle or the new one, never half of one; a bundle that would come out the same is left
    alone, so that build systems which look at times do not rebuild what depends on it.
    """
    work = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        shutil.copyfile(lowered.path, work / spec.model_file)
        for extra in lowered.extra_files:
            shutil.copy(extra, work / extra.name)
        shutil.copyfile(golden, work / "golden.npz")
        shutil.copyfile(parity.__file__, work / "run_parity.py")
        facts = {
            "recipe": recipe, "dataset": dataset, "history": history, "parity": verdict,
            "runtime_package": spec.runtime_package,
        }  # fmt: skip
        draft = complete_manifest(model, folder=work, **facts)  # type: ignore[arg-type]
        (work / "README.md").write_text(bundle_readme(draft), encoding="utf-8")
        manifest = complete_manifest(model, folder=work, **facts)  # type: ignore[arg-type]
        (work / "bundle.json").write_text(canonical_json(manifest), encoding="utf-8")
        if not _is_same(destination, manifest):
            replace_folder(work, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _is_same(folder: Path, manifest: Manifest) -> bool:
    try:
        return bool(parity.read_bundle(str(folder))["digest"] == manifest["digest"])
    except parity.BundleDamaged:
        return False
