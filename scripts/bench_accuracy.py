"""What int8 costs each network under the contract: the metric beside float, paired, on held-out samples.

A row is a recipe. Add one by putting a recipe with ``[accuracy]`` below ``bench_recipes/``, or a built-in recipe and
what it is to be held to into ``CONTRACTS``; its goals go to ``[accuracy.NAME]`` in ``bench_goals.toml``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_figures import Figure
from bench_network import Network, NotMeasured, last_line
from bench_timing import run_watched

_RECIPES = Path(__file__).with_name("bench_recipes")


@dataclass(frozen=True)
class Contract:
    """What a recipe is held to: values that replace its own, and the targets to build."""

    values: Mapping[str, str]
    targets: tuple[str, ...] = ("all",)


# The photos have no labels: the float network's own class stands in for them.
_PHOTOS = {"calibration.method": "auto", "calibration.num_held_out": "300", "accuracy.metric": "top1"}
# The search starts at static int8, so that its first trial is what that alone costs.
_SENTENCES = {"quantize.precision": "int8", "accuracy.metric": "cosine", "accuracy.max_drop": "0.01"}
CONTRACTS: Mapping[str, Contract] = {
    "efficientnet_lite0": Contract({**_PHOTOS, "accuracy.max_drop": "0.02"}),
    "mobilenet_v2": Contract({**_PHOTOS, "accuracy.max_drop": "0.04"}),
    "minilm": Contract(_SENTENCES, ("arm64", "x86")),
}


def accuracy_networks() -> tuple[str, ...]:
    """Return the recipes that have a contract: built-in ones by name, those of the bench by path."""
    own = {path.stem: path for path in sorted(_RECIPES.rglob("*.toml")) if path.name != "calibration.toml"}
    held = (path for name, path in own.items() if name in CONTRACTS or "[accuracy]" in path.read_text(encoding="utf-8"))
    return (*(name for name in CONTRACTS if name not in own), *map(str, held))


def accuracy_figures(network: Network) -> Iterator[Figure]:
    """Build a recipe for all targets under its contract and give the verdict of each."""
    for bundle in _built(network)["bundles"]:
        if bundle["accuracy"] is None:
            raise NotMeasured("the recipe has no [accuracy]")
        yield from _figures(network.name, bundle["target"], bundle)


def _figures(name: str, target: str, bundle: Mapping[str, Any]) -> Iterator[Figure]:
    report = bundle["accuracy"]
    found = report["measured"]
    share = found["unit"] == "%"
    scale, unit = (100, "%") if share else (1, found["unit"] or found["metric"])
    whose = "the float network's answers for labels" if found["is_proxy"] else "labels"
    moved = f"{len(report['nodes'])} nodes moved by {len(report['trials'])} trials" if report["trials"] else "no search"
    remark = (
        f"{found['metric']} {scale * found['float_figure']:.4g} -> {scale * found['figure']:.4g}, "
        f"{found['num_samples']} samples, {whose}; {_interval(found, scale)}; {moved}; "
        f"{'held' if report['passed'] else 'not held'}"
    )
    yield Figure("accuracy", name, f"{target}: drop", scale * found["drop"], unit, remark)
    if found["disagreement"] is not None:
        yield Figure("accuracy", name, f"{target}: another class than float", 100 * found["disagreement"], "%")
    if report["trials"]:
        first = scale * report["trials"][0]["drop"]
        yield Figure("accuracy", name, f"{target}: drop before the search", first, unit, "the recipe's own plan")
    coverage = 100 * bundle["integer_coverage"]
    ratio = f"{found['mean_sqnr_db']:.1f} dB on average"
    yield Figure("accuracy", name, f"{target}: multiplications on integers", coverage, "%", ratio)


def _interval(found: Mapping[str, Any], scale: int) -> str:
    interval = found["interval"]
    if interval is None:
        return "no interval"
    low, high = scale * interval["low"], scale * interval["high"]
    told = "not to be told from none" if low <= 0 <= high else "not by chance"
    return f"drop within {low:.3g} and {high:.3g}, {told}"


def _built(network: Network) -> dict[str, Any]:
    """Return what the command line reports; a contract that is not held is a figure too."""
    folder = network.folder / "contract"
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "build.json"
    contract = CONTRACTS.get(network.name, Contract({}))
    command = [sys.executable, "-m", "edgeopt", "build", network.reference, "--out", str(folder), "-q"]
    command += ["--json", str(result), "--set", "latency.compare=false"]
    command += [word for target in contract.targets for word in ("--target", target)]
    finished = run_watched(
        [*command, *(word for pair in contract.values.items() for word in ("--set", "=".join(pair)))]
    )
    if finished.exit_code not in (0, 12, 16):
        raise NotMeasured(f"edgeopt build {network.name}: {last_line(finished.errors)}")
    built: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return built
