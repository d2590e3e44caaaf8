"""The contract by whole builds of a small network with planted faults, in the real runtimes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import pytest
from planted import NUM_HELD_OUT, RECIPE, write_planted
from tiny_project import bundle_files, command, edgeopt_run, environment

import edgeopt
from edgeopt.accuracy.groups import quantizer_groups
from edgeopt.accuracy.report import AccuracyReport
from edgeopt.accuracy.sensitivity import Damage, damages
from edgeopt.artifacts import FloatModel, Ranges, TensorRange
from edgeopt.errors import AccuracyError, DataError, QuantizationError
from edgeopt.export import float_model
from edgeopt.pipeline import BuildResult
from edgeopt.quantize import scheme
from edgeopt.quantize.qdq import quantize
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import QuantizeSettings

PLAN = QuantizeSettings()


def built(recipe: Path, target: str = "arm64", **overrides: object) -> BuildResult:
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    return edgeopt.build(recipe, targets=[target], out=recipe.parent / "build", overrides=values)


def report_of(result: BuildResult) -> AccuracyReport:
    (bundle,) = result.bundles
    assert bundle.accuracy is not None
    return bundle.accuracy


# ---------------------------------------------------------------- sensitivity


def observed(source: FloatModel, samples: list[Sample]) -> dict[str, TensorRange]:
    """Return the smallest and largest value of every tensor, by running a graph that gives them all."""
    model = ir.load(source.path)
    names = [str(value.name) for node in model.graph for value in node.outputs]
    model.graph.outputs[:] = [value for node in model.graph for value in node.outputs]
    session = OnnxSession(ir.to_proto(model).SerializeToString())
    answers = [session.run(sample.inputs) for sample in samples]
    found = {name: TensorRange(*bounds([answer[name] for answer in answers])) for name in names}
    return {**found, "x": TensorRange(*bounds([sample.inputs["x"] for sample in samples]))}


def bounds(arrays: list[np.ndarray]) -> tuple[float, float]:
    return float(min(array.min() for array in arrays)), float(max(array.max() for array in arrays))


def sensitivity(folder: Path, weights: Mapping[str, int] | None = None, **faults: bool) -> dict[str, Damage]:
    """Return the damage of each group of a planted network, by the group's first tensor."""
    write_planted(folder, **faults)  # type: ignore[arg-type]
    source = float_model(folder / "float.onnx")
    given = scheme.ASYMMETRIC if weights is None else replace(scheme.ASYMMETRIC, weight_axes=weights)
    with np.load(folder / "calibration.npz") as stored:
        samples = [Sample(str(i), {"x": array[np.newaxis]}) for i, array in enumerate(stored["x"][:4])]
    tensors = observed(source, samples)
    ranges = Ranges(folder / "ranges.json", tensors, 4)
    ranges = replace(ranges, observed=tensors) if hasattr(ranges, "observed") else ranges
    qdq = quantize(source, ranges, given, PLAN, folder)
    groups = quantizer_groups(ir.load(source.path), given, PLAN)
    found = damages(ir.load(qdq.path), ir.load(source.path), groups, samples, ["logits"])
    return {group.name: damage for group, damage in zip(groups, found, strict=True)}


def test_damages_are_largest_for_the_tensor_with_an_outlier(tmp_path: Path) -> None:
    found = sensitivity(tmp_path, outlier=True)
    worst = max(found, key=lambda name: found[name].total)
    assert worst == "r1"
    others = [damage.total for name, damage in found.items() if name != worst]
    assert found[worst].total > 100 * max(others)
    assert found[worst].constants < 0.01 * found[worst].total  # its activations do it, not the weights behind it


def test_damages_blame_the_weights_when_they_share_one_scale(tmp_path: Path) -> None:
    by_channel = sensitivity(tmp_path / "channel", cancelling=True)["x"]
    by_tensor = sensitivity(tmp_path / "tensor", weights={}, cancelling=True)["x"]
    assert by_tensor.total > 30 * by_channel.total
    assert by_tensor.constants > 0.9 * by_tensor.total


def test_damages_add_up_to_what_the_whole_graph_loses_when_all_is_well(tmp_path: Path) -> None:
    found = sensitivity(tmp_path)
    with np.load(tmp_path / "calibration.npz") as stored:
        images = stored["x"][:4]
    sessions = [OnnxSession(tmp_path / name, optimize=False) for name in ("float.onnx", "model.onnx")]
    noise = []
    for image in images:
        wanted, got = (session.run({"x": image[np.newaxis]})["logits"] for session in sessions)
        noise.append(float(((wanted - got) ** 2).sum() / (wanted**2).sum()))
    assert sum(damage.total for damage in found.values()) == pytest.approx(np.mean(noise), rel=0.7)


# ---------------------------------------------------------------- what the contract catches


def test_build_moves_nothing_when_the_network_is_well(tmp_path: Path) -> None:
    report = report_of(built(write_planted(tmp_path)))
    assert report.passed
    assert (report.nodes, report.trials) == ({}, ())
    assert report.measured.num_samples == NUM_HELD_OUT
    assert not report.measured.is_proxy


@pytest.mark.parametrize(("target", "precision"), [("arm64", "int16"), ("x86", "float"), ("cuda", "float")])
def test_build_moves_the_outlier_alone_when_one_is_planted(tmp_path: Path, target: str, precision: str) -> None:
    report = report_of(built(write_planted(tmp_path, outlier=True), target))
    assert report.trials[0].drop is not None
    assert report.trials[0].drop > 0.2
    assert report.passed
    assert report.measured.drop <= 0.05
    assert set(report.nodes.values()) == {precision}
    assert set(report.nodes) <= {"Conv_c1", "Relu_r1", "Conv_c2", "Relu_r2"}
    manifest = json.loads((tmp_path / "build/planted" / target / "bundle.json").read_text())
    assert manifest["accuracy"]["nodes"] == report.nodes
    assert "median_ms" not in manifest["accuracy"]["trials"][0]
    readme = (tmp_path / "build/planted" / target / "README.md").read_text()
    assert f"- moved to {precision}: Conv_c2" in readme


def test_build_catches_weights_that_share_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_planted(tmp_path, cancelling=True)
    assert report_of(built(recipe)).trials == ()
    per_tensor = replace(scheme.ASYMMETRIC, weight_axes={})
    monkeypatch.setattr(scheme, "SCHEMES", MappingProxyType({**scheme.SCHEMES, "asymmetric": per_tensor}))
    report = report_of(edgeopt.build(recipe, targets=["arm64"], out=tmp_path / "per tensor"))
    assert report.trials[0].drop is not None
    assert report.trials[0].drop > 0.2
    assert report.passed
    assert report.nodes["Conv_c1"] == "float"
    assert "Gemm_logits" not in report.nodes


def test_build_catches_junk_calibration_and_keeps_the_older_bundle(tmp_path: Path) -> None:
    recipe = write_planted(tmp_path)
    built(recipe)
    good = bundle_files(tmp_path / "build/planted/arm64")
    write_planted(tmp_path, calibration_scale=0.004)
    with pytest.raises(AccuracyError, match=r"arm64: top1 drops by .* %, limit 5\.00 %, with the best of") as raised:
        built(recipe, parity__min_integer_coverage=0.9)
    assert bundle_files(tmp_path / "build/planted/arm64") == good
    result = raised.value.result
    assert isinstance(result, BuildResult)
    content = result.to_json()["bundles"][0]
    assert content["path"].endswith("arm64.rejected")
    assert content["accuracy"]["frontier"][0] == 0
    assert len(content["accuracy"]["trials"]) >= 2


def test_build_says_proxy_when_there_are_no_labels(tmp_path: Path) -> None:
    recipe = write_planted(tmp_path)
    for split in ("calibration", "held_out"):
        with np.load(tmp_path / f"{split}.npz") as stored:
            np.savez(tmp_path / f"{split}.npz", x=stored["x"])
    report = report_of(built(recipe, accuracy__metric="cosine", accuracy__max_drop=0.01))
    assert report.measured.is_proxy
    assert report.measured.float_figure == pytest.approx(1.0)
    assert report.measured.mean_sqnr_db > 20


# ---------------------------------------------------------------- the command line


def test_build_exits_with_16_and_shows_the_frontier_when_the_limit_cannot_be_met(tmp_path: Path) -> None:
    write_planted(tmp_path, outlier=True)
    limit = ("--set", "parity.min_integer_coverage=1.0", "--set", 'accuracy.precisions=["float"]')
    done = edgeopt_run(tmp_path, "build", "recipe.toml", "-t", "x86", *limit, "--json", "out.json")
    assert done.returncode == 16, done.stderr
    assert "[accuracy] x86: top1" in done.stderr
    assert "accuracy of x86: not held" in done.stdout
    assert "accuracy against size and speed" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())["bundles"][0]["accuracy"]
    assert not content["passed"]
    assert content["trials"][0]["num_moves"] == 0
    assert {"drop", "size_bytes", "integer_coverage", "median_ms"} <= set(content["trials"][0])


def test_build_goes_on_with_the_trials_that_are_done_when_it_was_killed(tmp_path: Path) -> None:
    write_planted(tmp_path, outlier=True)
    arguments = ("build", "recipe.toml", "-t", "x86", "-v")
    process = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("1 moves:"):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate(timeout=120)
    cache = tmp_path / "build/.cache"
    assert not list(cache.glob("search-x86-*"))
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*-*/entry.json")}
    assert len(list(cache.glob("accuracy-x86-*/entry.json"))) >= 2  # the recipe's plan and the first trial
    done = edgeopt_run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "1 moves:" in done.stderr  # told again, not measured again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = edgeopt_run(tmp_path, *arguments)
    assert "1 moves:" not in again.stderr
    assert re.search(r"search-x86 +cached", again.stdout)


METRIC = "def share(answers, labels):\n    {}\n"


def test_build_keeps_its_work_when_the_metric_raises(tmp_path: Path) -> None:
    write_planted(tmp_path)
    (tmp_path / "m.py").write_text(METRIC.format("raise RuntimeError('broken')"))
    arguments = ("build", "recipe.toml", "--set", "accuracy.metric=m.py:share", "--depfile", "d.d")
    done = edgeopt_run(tmp_path, *arguments)
    assert done.returncode == 17, done.stderr
    assert "[accuracy-arm64] metric 'm.py:share' raised RuntimeError on 64 samples: broken" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "m.py").write_text(METRIC.format("return float((answers.argmax(1) == labels).mean())"))
    done = edgeopt_run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(r"lower-arm64 +cached", done.stdout)
    assert "no interval: the metric gives one number for all samples" in done.stdout
    assert "m.py" in (tmp_path / "d.d").read_text()


def test_build_refuses_when_a_label_is_out_of_range(tmp_path: Path) -> None:
    recipe = write_planted(tmp_path)
    with np.load(tmp_path / "held_out.npz") as stored:
        np.savez(tmp_path / "held_out.npz", x=stored["x"], labels=[4, *stored["labels"][1:]])
    with pytest.raises(DataError, match=r"'held_out\.npz\[0\]': label 4 is no class of an output with 4"):
        built(recipe)


def test_build_refuses_when_there_is_nothing_to_quantize(tmp_path: Path) -> None:
    nodes = ("Conv_c1", "Relu_r1", "Conv_c2", "Relu_r2", "MaxPool_p", "node_Gemm_0")
    with pytest.raises(QuantizationError, match="no convolution or matrix product with constant weights to quantize"):
        built(write_planted(tmp_path), quantize__nodes=dict.fromkeys(nodes, "float"))


# ---------------------------------------------------------------- slower than float


# In 16 bits, which XNNPACK has no kernels for, and of a size that takes longer than a call.
SLOW = RECIPE.replace("[1, 3, 8, 8]", "[1, 3, 48, 48]").replace("[latency]\ncompare = false", "")
SLOW = SLOW.partition("[accuracy]")[0] + '[quantize]\nprecision = "int16"\n[parity]' + SLOW.partition("[parity]")[2]


def test_build_exits_with_18_when_a_bundle_is_slower_than_float(tmp_path: Path) -> None:
    write_planted(tmp_path, size=48, recipe=SLOW)
    arguments = ("build", "recipe.toml", "-t", "arm64")
    done = edgeopt_run(tmp_path, *arguments)
    assert done.returncode == 18, done.stderr
    assert "[latency] arm64: slower: float " in done.stderr
    assert "on this machine, one thread" in done.stderr
    assert not (tmp_path / "build/planted/arm64").exists()
    done = edgeopt_run(tmp_path, *arguments, "--allow-slower", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    assert re.search(r"latency-arm64 +cached", done.stdout)
    assert json.loads((tmp_path / "out.json").read_text())["bundles"][0]["latency"]["verdict"] == "slower"
    done = edgeopt_run(tmp_path, *arguments, "--set", "latency.compare=false")
    assert done.returncode == 0, done.stderr
    assert "latency-arm64" not in done.stdout


def test_build_times_no_runtime_that_is_not_the_devices_own(tmp_path: Path) -> None:
    (bundle,) = built(write_planted(tmp_path), "cuda", latency__compare=True).bundles
    assert bundle.speed is None
