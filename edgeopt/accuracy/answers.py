"""What a lowered model answers in its own runtime, as real numbers laid out as the float network's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import parity
from edgeopt.accuracy.metrics import Answers
from edgeopt.bundle.manifest import Manifest
from edgeopt.bundle.reference import in_layout, on_grid
from edgeopt.inspection import TensorFacts
from edgeopt.samples import Sample
from edgeopt.settings import InputSettings
from edgeopt.stage import track
from edgeopt.verdict import open_quietly


@dataclass(frozen=True)
class Answered:
    """Answers ``(N, ...)`` of one output, and the median time of an inference: an impression, taken in no turns."""

    answers: Answers
    median_ms: float


def answered(
    model: Path,
    manifest: Manifest,
    output: str,
    samples: Sequence[Sample],
    inputs: Mapping[str, InputSettings],
    runtime: str,
) -> Answered:
    """Run a model on samples as an application would.

    Raises:
        MissingDependencyError: the runtime is not installed.
    """
    run, _ = open_quietly(model, manifest["model"]["format"], runtime)
    facts = next(facts for facts in manifest["outputs"] if facts["name"] == output)
    found, times = [], []
    for sample in track(samples, total=len(samples), description="held-out samples"):
        fed = fed_to(sample, manifest["inputs"], inputs)
        start = time.perf_counter()
        outputs = run(fed)
        times.append(time.perf_counter() - start)
        found.append(parity.to_real(outputs[output][0], facts))
    return Answered(in_layout(np.stack(found), facts["layout"], "NCHW"), 1000 * statistics.median(times))


def fed_to(sample: Sample, tensors: Sequence[Mapping[str, Any]], inputs: Mapping[str, InputSettings]) -> parity.Arrays:
    """Return a sample as a model takes it: in its layout, and on its integers if it takes integers.

    Args:
        sample: as the recipe has it.
        tensors: the facts of the model's inputs, as a manifest has them.
        inputs: of the recipe.
    """
    fed = {}
    for content in tensors:
        facts = TensorFacts(**{**content, "shape": tuple(content["shape"])})
        array = in_layout(sample.inputs[facts.name], inputs[facts.name].layout, facts.layout)
        fed[facts.name] = np.ascontiguousarray(array if facts.dtype == "float32" else on_grid(array, facts))
    return fed
