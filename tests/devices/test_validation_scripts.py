"""The scripts that the field uses, against a real ssh server and real virtual environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from adb_board import SERIAL, AdbBoard
from ssh_server import Server
from tiny_project import ROOT, edgeopt_run, write_project

from edgeopt.parity import manifest_digest


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / script), *arguments],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def pi(server: Server, bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script against the server, with a virtual environment of the test's own."""
    where = ["-p", str(server.port), "-F", str(server.folder / "ssh_config"), "-d", str(server.folder / "a folder")]
    return run("validate_raspberry_pi", *where, *options, "127.0.0.1", str(bundle))


@pytest.fixture
def ready(server: Server) -> Server:
    """A board on which the virtual environment was made before: it is this interpreter's."""
    environment = server.folder / "a folder" / "ai-edge-litert"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (environment / "ready").touch()
    return server


def refusing(bundle: Path, folder: Path) -> Path:
    """Copy a bundle and set a limit that no answer keeps."""
    copy = Path(shutil.copytree(bundle, folder))
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["limits"]["min_sqnr_db"] = 199.0
    manifest["digest"] = manifest_digest(manifest)
    (copy / "bundle.json").write_text(json.dumps(manifest))
    return copy


def test_raspberry_pi_says_yes_when_the_board_answers_as_it_should(server: Server, bundle: Path) -> None:
    done = pi(server, bundle)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("yes: ")
    assert [path.name for path in (server.folder / "a folder").iterdir()] == ["ai-edge-litert"]
    again = pi(server, bundle)
    assert again.returncode == 0
    assert "making" not in again.stderr


def test_raspberry_pi_says_no_when_an_answer_is_outside_its_limits(ready: Server, bundle: Path, tmp_path: Path) -> None:
    done = pi(ready, refusing(bundle, tmp_path / "copy"))
    assert done.returncode == 12
    assert done.stdout.splitlines()[-1].startswith("no: ")


def test_raspberry_pi_refuses_when_the_bundle_was_changed(ready: Server, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "model.tflite").write_bytes(b"x")
    done = pi(ready, copy)
    assert done.returncode == 11
    assert "model.tflite is not the file that was built" in done.stderr


def test_raspberry_pi_says_so_when_the_host_is_not_known(server: Server, bundle: Path) -> None:
    (server.folder / "known_hosts").write_text("")
    done = pi(server, bundle)
    assert done.returncode == 15
    assert "Host key verification failed" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["host"], ["-oProxyCommand=x", "bundle"], ["-t", "soon", "host", "bundle"], ["-r", "torch", "host", "bundle"]],
)
def test_raspberry_pi_refuses_when_the_arguments_make_no_sense(arguments: list[str]) -> None:
    done = run("validate_raspberry_pi", *arguments)
    assert done.returncode == 2
    assert done.stderr


def test_android_says_yes_on_debians_adbd_which_is_not_android(
    adb_board: AdbBoard, runner_in_c: Path, bundle: Path
) -> None:
    done = run("validate_android", "-s", SERIAL, str(bundle), str(runner_in_c))
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("yes: ")
    left = subprocess.run([adb_board.client, "shell", "ls /data/local/tmp"], capture_output=True, check=True)
    assert left.stdout == b""


def test_android_exits_with_the_verdict_when_it_is_no(
    adb_board: AdbBoard, runner_in_c: Path, bundle: Path, tmp_path: Path
) -> None:
    done = run("validate_android", str(refusing(bundle, tmp_path / "refused")), str(runner_in_c))
    assert (done.returncode, done.stdout.splitlines()[-1][:4]) == (12, "no: ")
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    (changed / "model.tflite").write_bytes(b"x")
    done = run("validate_android", str(changed), str(runner_in_c))
    assert done.returncode == 11
    assert "model.tflite is not the file that was built" in done.stdout


def test_android_says_what_is_missing(adb_board: AdbBoard, runner_in_c: Path, bundle: Path, tmp_path: Path) -> None:
    nowhere = run("validate_android", "-s", "nobody", str(bundle), str(runner_in_c))
    assert nowhere.returncode == 15
    assert "USB debugging" in nowhere.stderr
    without = run("validate_android", str(bundle), str(runner_in_c), ADB="/nowhere/adb")
    assert (without.returncode, "platform tools" in without.stderr) == (13, True)
    empty = run("validate_android", str(bundle), str(tmp_path))
    assert (empty.returncode, "has no run_parity" in empty.stderr) == (13, True)


@pytest.mark.parametrize("arguments", [[], ["bundle"], ["-t", "soon", "bundle", "runner"], ["-x"]])
def test_android_refuses_when_the_arguments_make_no_sense(arguments: list[str]) -> None:
    done = run("validate_android", *arguments)
    assert done.returncode == 2
    assert done.stderr


def test_x86_gives_the_bundle_verdict_when_the_runtime_is_there(bundle: Path, tmp_path: Path) -> None:
    folder = write_project(tmp_path / "project")
    assert edgeopt_run(folder, "build", "--target", "x86").returncode == 0
    built = folder / "build/edgeopt/x86"
    assert run("validate_x86", str(built), sys.executable).returncode == 0
    assert run("validate_x86", str(refusing(built, tmp_path / "copy")), sys.executable).returncode == 12


def test_x86_says_what_is_missing_when_python_has_no_runtime(bundle: Path, tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    done = run("validate_x86", str(bundle), str(bare))
    assert done.returncode == 13
    assert "no NumPy or no onnxruntime" in done.stderr
    assert run("validate_x86").returncode == 2
    assert run("validate_x86", "--help").returncode == 0


# ---------------------------------------------------------------- cuda: this machine has no GPU


@pytest.fixture(scope="module")
def cuda_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("cuda") / "project")
    done = edgeopt_run(folder, "build", "--target", "cuda")
    assert done.returncode == 0, done.stderr
    return folder / "build/edgeopt/cuda"


def parity(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(bundle / "run_parity.py"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)


def test_cuda_says_what_is_missing_and_does_not_pass_without_a_gpu(cuda_bundle: Path) -> None:
    done = run("validate_cuda", str(cuda_bundle), sys.executable)
    assert done.returncode == 13
    assert "yes" not in done.stdout
    missing = next(line for line in done.stderr.splitlines() if line.startswith("missing here: "))
    for what in ("nvidia-smi finds no GPU", "no TensorrtExecutionProvider", "no CUDAExecutionProvider", "no trtexec"):
        assert what in missing
    assert "it has" in done.stderr  # the providers of this onnxruntime


def test_provider_is_never_replaced_by_the_cpu(cuda_bundle: Path) -> None:
    refused = parity(cuda_bundle, "--provider", "CUDAExecutionProvider")
    assert refused.returncode == 13
    assert "has no CUDAExecutionProvider; it has" in refused.stderr
    assert "passed" not in refused.stdout
    assert parity(cuda_bundle, "--provider", "CPUExecutionProvider").returncode == 0


@pytest.mark.parametrize(
    ("codes", "expected", "said"),
    [
        (
            {"parity": 0, "engine": 0},
            0,
            "yes: answers in TensorrtExecutionProvider; answers in CUDAExecutionProvider; eng",
        ),
        ({"parity": 0, "engine": 3}, 0, "yes: answers in TensorrtExecutionProvider"),
        ({"parity": 12, "engine": 0}, 12, "no: answers in TensorrtExecutionProvider"),
        ({"parity": 0, "engine": 7}, 12, "no: no layer of the engine runs on int8"),
        ({"parity": 0, "engine": 5}, 12, "no: the engine was not built"),
        ({"parity": 13, "engine": 0}, 13, ""),
        ({"parity": 11, "engine": 0}, 11, ""),
    ],
)
def test_cuda_takes_the_worst_of_what_the_bundle_says(
    tmp_path: Path, codes: dict[str, int], expected: int, said: str
) -> None:
    """Two scripts in the place of the bundle's own say what a machine with a GPU would."""
    (tmp_path / "run_parity.py").write_text(f"raise SystemExit({codes['parity']})")
    engine = tmp_path / "build_engine.sh"
    engine.write_text(f"#!/bin/sh\nexit {codes['engine']}\n")
    engine.chmod(0o755)
    done = run("validate_cuda", str(tmp_path), sys.executable)
    assert (done.returncode, done.stdout[: len(said)]) == (expected, said), done.stderr


def test_cuda_refuses_when_the_arguments_make_no_sense(bundle: Path) -> None:
    assert run("validate_cuda").returncode == 2
    assert run("validate_cuda", str(bundle)).returncode == 2  # of arm64
    assert run("validate_cuda", "--help").returncode == 0
