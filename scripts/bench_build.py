"""Time and memory of a whole build, from nothing and with nothing to do, and the sizes of what it makes."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

from bench_figures import Figure
from bench_network import Network, NotMeasured, build_command, last_line
from bench_timing import Finished, load, run_watched

_REBUILDS = 3
_VERDICT_NO = 12  # a bundle over its recipe's limits: the build did all its work


def build_figures(network: Network) -> Iterator[Figure]:
    """Build into an empty folder, then again; all targets, every bundle verified."""
    out = network.folder.with_name(f"{network.name}-timed")
    shutil.rmtree(out, ignore_errors=True)
    busy = load()
    fresh = _build(network, out)
    again = [_build(network, out) for _ in range(_REBUILDS)]
    calibration = network.loaded.recipe.calibration
    samples = f"{calibration.num_samples} calibration, {calibration.num_held_out} held-out samples"
    refused = ", a verdict was no" if fresh.exit_code else ""

    def figure(name: str, value: float | None, unit: str, remark: str) -> Figure:
        return Figure("build", network.name, name, value, unit, remark)

    yield figure("fresh build, wall time", fresh.seconds, "s", f"{samples}; {busy}{refused}")
    yield figure("fresh build, CPU time", fresh.cpu_seconds, "s", "of all threads and processes")
    if fresh.peak_bytes is None:
        yield figure("fresh build, peak memory", None, "GB", "this system has no /proc")
    else:
        yield figure("fresh build, peak memory", fresh.peak_bytes / 1e9, "GB", "resident, whole process tree")
    seconds = [finished.seconds for finished in again]
    remark = f"median of {len(again)}, {min(seconds):.2f}-{max(seconds):.2f} s; {load()}"
    yield figure("unchanged rebuild, wall time", statistics.median(seconds), "s", remark)
    cpu = statistics.median(finished.cpu_seconds for finished in again)
    yield figure("unchanged rebuild, CPU time", cpu, "s", "")
    shutil.rmtree(out)


def footprint_figures(network: Network) -> Iterator[Figure]:
    """Compare the sizes of the files that are shipped with the float graph's."""
    float_bytes = network.float_graph.path.stat().st_size
    for target in network.bundles:
        model_bytes = network.model(target).stat().st_size
        manifest = network.manifests[target]
        everything = sum(facts["size_bytes"] for facts in manifest["files"].values())
        remark = f"{float_bytes:,} / {model_bytes:,} bytes; the whole bundle {everything:,}"
        yield Figure("footprint", network.name, f"{target}: float / int8 file", float_bytes / model_bytes, "x", remark)
        coverage = 100 * manifest["integer_coverage"]
        remark = f"{len(manifest['float_operators'])} of {manifest['num_operators']} operators still float"
        yield Figure("footprint", network.name, f"{target}: MACs on integers", coverage, "%", remark)


def _build(network: Network, out: Path) -> Finished:
    finished = run_watched(build_command(network.reference, out))
    if finished.exit_code not in (0, _VERDICT_NO):
        raise NotMeasured(f"edgeopt build failed: {last_line(finished.errors)}")
    return finished
