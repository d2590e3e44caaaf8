"""The doctor: facts about this machine, read from texts and tools that are written here."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import edgeopt
from edgeopt import doctor
from edgeopt.doctor import Machine, Runtime, checks_for, cpu_features, examine
from edgeopt.target import TargetSpec, discover_targets

PYPROJECT = Path(edgeopt.__file__).parent.parent / "pyproject.toml"
LITERT = ("ai-edge-litert", "tflite", "LiteRT, XNNPACK")
TENSORRT = ("onnxruntime", "onnx", "TensorRT (here: ONNX Runtime)")


def machine(architecture: str) -> Machine:
    return Machine("3.11", "Linux", architecture, 2, ())


def runtimes(*found: str) -> dict[str, Runtime]:
    names = ("ai-edge-litert", "tflite-runtime", "tensorflow", "onnxruntime", "trtexec", "qemu-aarch64")
    return {name: Runtime(name, name in found, f"detail of {name}") for name in names}


def test_packages_are_those_of_pyproject_when_compared() -> None:
    if not PYPROJECT.is_file():
        pytest.skip("pyproject.toml is not there: edgeopt is installed, not checked out")
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=]", text)[0] for text in declared} == set(doctor._REQUIRED)


def test_cpu_features_are_read_when_the_text_is_x86() -> None:
    text = "processor\t: 0\nmodel name\t: X avx2\nflags\t\t: fpu sse4_2 avx2 avx512_vnni\n\nprocessor\t: 1\n"
    assert cpu_features(text) == ("avx2", "avx512_vnni (int8 dot product)")


def test_cpu_features_are_read_when_the_text_is_arm() -> None:
    text = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm asimddp\nCPU part\t: 0xd0b\n"
    assert cpu_features(text) == ("neon", "neon dot product")


@pytest.mark.parametrize("text", ["", "processor: 0\n", "flags\t\t: avx2x\n"])
def test_cpu_features_are_none_when_the_text_has_none(text: str) -> None:
    assert cpu_features(text) == ()


def target(package: str, model_format: str, runtime: str) -> TargetSpec:
    spec = next(iter(discover_targets().values()))
    return replace(spec, name="board", runtime=runtime, runtime_package=package, model_format=model_format)


@pytest.mark.parametrize(
    ("spec", "architecture", "found", "possible"),
    [
        (LITERT, "x86_64", ("ai-edge-litert",), [True, False, False, False]),
        (LITERT, "x86_64", ("ai-edge-litert", "tensorflow", "qemu-aarch64"), [True, False, True, True]),
        (LITERT, "aarch64", (), [False, False, False]),
        (("onnxruntime", "onnx", "ONNX Runtime"), "x86_64", ("onnxruntime",), [True]),
        (TENSORRT, "x86_64", ("onnxruntime",), [True, False]),
        (TENSORRT, "x86_64", ("onnxruntime", "trtexec"), [True, True]),
    ],
)
def test_checks_for_says_what_is_possible_when_runtimes_are_found(
    spec: tuple[str, str, str], architecture: str, found: tuple[str, ...], possible: list[bool]
) -> None:
    checks = list(checks_for(target(*spec), machine(architecture), runtimes(*found)))
    assert [check.possible for check in checks] == possible
    assert all("detail of" in check.why for check in checks)


def test_examine_knows_the_runtime_of_every_target_when_run_here() -> None:
    diagnosis = examine()
    assert diagnosis.machine.num_cpus >= 1
    assert {check.target for check in diagnosis.checks} == set(discover_targets()) == set(diagnosis.notes)
    json.dumps(diagnosis.to_json(), allow_nan=False)


def test_examine_reports_no_feature_when_there_is_no_cpuinfo(tmp_path: Path) -> None:
    assert examine(tmp_path / "cpuinfo").machine.cpu_features == ()


def test_program_is_found_when_it_is_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not doctor._program("trtexec", "TensorRT's own", ("trtexec",)).found
    program = tmp_path / "trtexec"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert str(program) in doctor._program("trtexec", "TensorRT's own", ("trtexec",)).detail
