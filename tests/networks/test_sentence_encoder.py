"""A published sentence encoder through a whole build: what dynamic activations keep, and what static ones cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_project import ROOT

import edgeopt
from edgeopt import parity

pytestmark = [
    pytest.mark.slow,
    # What torch says about itself while it exports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

RECIPE = ROOT / "scripts/bench_recipes/text/minilm.toml"
FEW = {"calibration.num_samples": 16, "calibration.num_held_out": 24, "calibration.num_golden": 24}
# Static int8 is built to be looked at: no limit may stop it.
LIMITS = {"min_cosine": -1.0, "min_sqnr_db": -200.0, "max_steps": 255}
STATIC = {"quantize.precision": "int8", **{f"parity.{name}": limit for name, limit in LIMITS.items()}}
CORRECTIONS = ("fold_batch_norm", "clamp_masks", "smooth", "equalize", "correct_bias")
PLAIN = {"latency.compare": False, **{f"correct.{name}": "off" for name in CORRECTIONS}}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles of MiniLM: dynamic for both targets, static for one."""
    out = tmp_path_factory.mktemp("minilm")
    dynamic = edgeopt.build(RECIPE, targets=("arm64", "x86"), out=out, overrides={**FEW, **PLAIN})
    found = {bundle.target: bundle.path.rename(out / bundle.target) for bundle in dynamic.bundles}
    (static,) = edgeopt.build(RECIPE, out=out, overrides={**FEW, **PLAIN, **STATIC}).bundles
    return {**found, "static": static.path}


def cosines(bundle: Path) -> list[float]:
    """Run a bundle on its golden sentences and return the cosine of each answer to the float network's."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    model, (facts,) = manifest["model"], manifest["outputs"]
    opened = parity.open_model(str(bundle / model["file"]), parity.find_runtime(model["format"]))
    with np.load(bundle / "golden.npz") as stored:
        golden = dict(stored)
    answers = [opened(parity.feed(golden, manifest, index))["embedding"] for index in range(len(golden["names"]))]
    expected = golden["float/embedding"]
    return [parity.cosine(*pair) for pair in zip(expected, (parity.to_real(a, facts) for a in answers), strict=True)]


@pytest.mark.parametrize("target", ["arm64", "x86"])
def test_minilm_keeps_its_answers_in_integer_kernels_when_activations_are_dynamic(
    built: dict[str, Path], target: str
) -> None:
    manifest = json.loads((built[target] / "bundle.json").read_text())
    found = cosines(built[target])
    assert len(found) == 24
    assert np.mean(found) >= 0.99
    assert min(found) >= 0.99
    assert manifest["integer_coverage"] >= 0.85
    assert manifest["parity"]["passed"]


def test_minilm_loses_its_answers_when_activations_are_static(
    built: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {name: cosines(path) for name, path in built.items()}
    with capsys.disabled():
        print("\nMiniLM, cosine to float on 24 sentences: mean, worst")
        print(*(f"{name:8} {np.mean(found):.4f} {min(found):.4f}" for name, found in rows.items()), sep="\n")
    assert np.mean(rows["static"]) < 0.7  # without corrections; with them 0.82
