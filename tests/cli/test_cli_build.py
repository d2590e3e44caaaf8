"""Whole builds from the command line, of a network so small that each takes seconds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import edgeopt

ROOT = Path(edgeopt.__file__).parent.parent

NET = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )
"""
PREPROCESS = """
import numpy as np
from edgeopt.samples import Sample

SEEDS = {"train": 0, "calibration": 1000, "held_out": 2000}

class Noise:
    def __init__(self, split):
        self.split = split
    def __len__(self):
        return 16
    def __getitem__(self, index):
        random = np.random.default_rng(SEEDS[self.split] + index)
        return Sample(f"{self.split}/{index}", {"image": random.random((1, 3, 8, 8), dtype=np.float32)})

def open_dataset(split, inputs, options):
    return Noise(split)
"""
RECIPE = """
[model]
factory = "net.py:build"
outputs = ["logits"]
[model.inputs.image]
shape = [1, 3, 8, 8]
[calibration]
dataset = "noise set"
num_samples = 8
num_held_out = 8
num_golden = 4
[parity]
min_sqnr_db = 0.0
min_cosine = 0.5
min_top1_agreement = 0.5
min_integer_coverage = 0.5
"""


def write_project(folder: Path) -> None:
    dataset = folder / "noise set"
    dataset.mkdir()
    (dataset / "preprocess.py").write_text(PREPROCESS)
    (dataset / "calibration.toml").write_text('title = "noise"\nsource = "here"\nlicence = "none"\n')
    (folder / "net.py").write_text(NET)
    (folder / "edgeopt.toml").write_text(RECIPE)


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeopt", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    done = run(["build", "-t", "arm64", "-t", "x86", "--json", "out.json", "--depfile", "out.d"], folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def project(built: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the built project, cache and all, that a test may change."""
    return Path(shutil.copytree(built[0], tmp_path / "copy"))


def test_build_prints_results_to_stdout_and_progress_to_stderr_when_it_succeeds(built) -> None:
    _, done = built
    lines = done.stdout.splitlines()
    assert any(line.startswith("arm64 ") and line.endswith(" build/edgeopt/arm64") for line in lines)
    assert any(line.startswith("x86 ") and "passed" in line for line in lines)
    assert "calibrate ..." in done.stderr
    assert "calibrate ..." not in done.stdout


def test_build_writes_json_when_asked(built) -> None:
    content = json.loads((built[0] / "out.json").read_text())
    assert [bundle["target"] for bundle in content["bundles"]] == ["arm64", "x86"]
    assert all(bundle["parity"]["passed"] for bundle in content["bundles"])


def test_build_runs_nothing_again_when_nothing_changed(project: Path) -> None:
    done = run(["build", "-t", "arm64", "-t", "x86"], project)
    assert done.returncode == 0
    stages = [line.split() for line in done.stdout.partition("\n\n")[0].splitlines()[1:]]
    assert {stage[0] for stage in stages if stage[1] != "cached"} <= {"bundle-arm64", "bundle-x86"}


def test_make_builds_again_when_an_input_changed(project: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = f"{sys.executable} -m edgeopt build -q --json out.json --depfile out.d && echo rebuilt"
    (project / "Makefile").write_text(f"out.json:\n\t@{command}\n-include out.d\n")
    make = ["make", "out.json"]

    def rebuilt() -> bool:
        done = subprocess.run(make, cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return "rebuilt" in done.stdout

    now = time.time()

    def stamp(name: str, age: float) -> None:
        os.utime(project / name, (now - age, now - age))

    inputs = ["edgeopt.toml", "net.py", "noise set/preprocess.py"]
    for name in [*inputs, "noise set/calibration.toml"]:
        stamp(name, 900)
    for name in inputs:
        stamp("out.json", 0)  # newer than edgeopt's own files, which are inputs too
        assert not rebuilt(), name
        stamp(name, -100)
        assert rebuilt(), name
        stamp(name, 900)


def test_build_prints_nothing_when_quiet(project: Path) -> None:
    done = run(["build", "-q", "--no-verify"], project)
    assert (done.returncode, done.stdout) == (0, "")
    assert "..." not in done.stderr


def test_build_prints_json_only_when_it_goes_to_stdout(project: Path) -> None:
    done = run(["build", "--json", "-"], project)
    assert json.loads(done.stdout)["recipe"] == "edgeopt"


def test_build_exits_with_12_when_the_verdict_is_no(project: Path) -> None:
    done = run(["build", "--set", "parity.min_sqnr_db=150"], project)
    assert done.returncode == 12
    assert "limit 150" in done.stderr


def test_verify_says_yes_when_the_bundle_is_as_built(built) -> None:
    done = run(["verify", "build/edgeopt/arm64", "--json", "parity.json"], built[0])
    assert done.returncode == 0, done.stderr
    assert "passed in ai-edge-litert" in done.stdout
    assert json.loads((built[0] / "parity.json").read_text())["passed"] is True


def test_verify_exits_with_11_when_the_bundle_was_changed(project: Path) -> None:
    model = project / "build" / "edgeopt" / "arm64" / "model.tflite"
    model.write_bytes(model.read_bytes() + b"\0")
    done = run(["verify", "build/edgeopt/arm64"], project)
    assert done.returncode == 11
    assert "model.tflite" in done.stderr


def test_verify_exits_with_11_when_there_is_no_bundle(tmp_path: Path) -> None:
    done = run(["verify", "nothing"], tmp_path)
    assert done.returncode == 11
    assert "hint: edgeopt build" in done.stderr


@pytest.mark.parametrize("path", ["build/edgeopt/arm64", "build/edgeopt/arm64/model.tflite", "build/edgeopt/x86"])
def test_inspect_counts_operators_when_given_a_bundle_or_a_model(path: str, built) -> None:
    done = run(["inspect", path, "--json", "-"], built[0])
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert sum(content["operators"].values()) == content["num_operators"] > 0
    assert run(["inspect", path], built[0]).stdout.count("image") == 1


def test_build_exits_with_130_and_goes_on_when_it_was_interrupted(tmp_path: Path) -> None:
    write_project(tmp_path)
    (tmp_path / "net.py").write_text(NET + "\nimport time\nopen('started', 'w').close()\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeopt", "build"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    last = errors.strip().splitlines()[-1]
    assert last == "interrupted; finished stages are cached; run the same command again to go on"
    assert "Traceback" not in errors
    (tmp_path / "net.py").write_text(NET)
    assert run(["build", "-q"], tmp_path).returncode == 0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)
