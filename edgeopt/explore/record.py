"""What is kept of a trial: ``trial.json`` in its folder, so that no trial whose inputs are the same runs twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeopt.artifacts import canonical_json, digest_of
from edgeopt.atomic import write_text
from edgeopt.bundle.manifest import tool_versions
from edgeopt.dataset import find_dataset
from edgeopt.explore.trial import TrialResult, trial_folder
from edgeopt.provenance import fingerprint, metric_files, model_files
from edgeopt.recipe import LoadedRecipe
from edgeopt.runner import ONNX, PACKAGE, RUNTIMES, TORCH, code_key
from edgeopt.target import TargetSpec


@dataclass(frozen=True)
class TrialRecord:
    """A result, and where it is from.

    Attributes:
        identity: the hash of all that the result depends on; see :func:`trial_identity`.
        attempts: how often the trial was started: more than once if its worker died.
        node: the machine that ran it last, which has the bundle; empty if none could say.
        result: how it ended.
    """

    identity: str
    attempts: int
    node: str
    result: TrialResult

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return asdict(self)


def trial_identity(loaded: LoadedRecipe, spec: TargetSpec, *, instructions: bool) -> str:
    """Return the hash of what a trial's result depends on: the recipe, the files it names, edgeopt and its packages.

    Raises:
        ModelError: a file of the network is not there.
        DataError: the samples are not there.
    """
    recipe = loaded.recipe
    metric = metric_files(recipe.accuracy.metric, loaded.folder) if recipe.accuracy else ()
    return digest_of(
        [
            canonical_json(loaded.resolved()),
            *fingerprint((*model_files(recipe.model, loaded.folder), *metric, *spec.files())),
            *find_dataset(recipe.calibration, loaded.folder).key(),
            *code_key(PACKAGE / "explore/trial.py"),
            *tool_versions((*TORCH, *ONNX, *RUNTIMES)),
            str(instructions),
        ]
    )


def write_record(out: Path, record: TrialRecord) -> None:
    """Write ``trial.json`` into the trial's folder.

    Raises:
        StorageError: it cannot be written.
    """
    folder = trial_folder(out, record.result.target, record.result.overrides)
    write_text(folder / "trial.json", canonical_json(record.to_json()))


def read_record(out: Path, target: str, overrides: Mapping[str, object], identity: str) -> TrialRecord | None:
    """Return what is kept of a trial, or ``None``: not there, damaged, or made of something else than now."""
    path = trial_folder(out, target, overrides) / "trial.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = TrialRecord(**{**content, "result": TrialResult.from_json(content["result"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if record.identity == identity else None
