"""The built-in recipes on emulated boards: real networks, real aarch64 code, every output compared."""

from pathlib import Path
from urllib.parse import urlencode

import pytest
from adb_board import AdbBoard
from tiny_project import edgeopt_run

from edgeopt import verify
from edgeopt.devices.board_image import BoardImage
from edgeopt.devices.compiler import Compiler
from edgeopt.devices.qemu import BOARDS, Emulation

# Few samples: an emulated inference of an ImageNet network takes a second.
FEW = (
    "--set",
    "calibration.num_golden=3",
    "--set",
    "calibration.num_held_out=8",
    "--set",
    "calibration.num_samples=16",
)
QUICK = {
    "efficientnet_lite0": FEW,
    "mobilenet_v2": FEW,
    "mnist5k": (
        *("--set", "train.epochs=1", "--set", "compress.distill.epochs=1", "--set", "calibration.num_golden=3"),
        *("--set", "train.threads=1", "--set", "compress.distill.threads=1"),
    ),
}


@pytest.fixture(scope="module", params=QUICK)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a built-in recipe; what is judged here is the device, so that the verdict on float is left out."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    loose = ("--set", "parity.min_sqnr_db=0", "--set", "parity.min_top1_agreement=0", "--set", "parity.min_cosine=0.5")
    done = edgeopt_run(folder, "build", name, *QUICK[name], *loose)
    assert done.returncode == 0, done.stderr
    return folder / "build" / name / "arm64"


def test_every_board_answers_bit_for_bit_as_this_machine_when_litert_runs_there(
    bundle: Path, boards: BoardImage
) -> None:
    for device in (*(f"qemu:{board}" for board in BOARDS), "board:pi4"):
        report = verify(bundle, device=device)
        assert report.passed, report.failures
        assert [(output.max_steps, output.equal_fraction) for output in report.outputs] == [(0, 1.0)], device


def test_c_runner_answers_bit_for_bit_as_python_does(
    bundle: Path, emulation: Emulation, cross_compiler: Compiler
) -> None:
    expected = verify(bundle).outputs
    for device in ("local", "qemu:pi4"):
        report = verify(bundle, device=device, runner="c")
        assert report.passed, report.failures
        assert report.outputs == expected
        assert report.kernels == "XNNPACK"


def test_debians_adbd_which_is_not_android_answers_bit_for_bit_when_the_runner_in_c_runs_there(
    bundle: Path, adb_board: AdbBoard, runner_in_c: Path
) -> None:
    report = verify(bundle, device=f"adb?{urlencode({'runner': runner_in_c})}")
    assert report.passed, report.failures
    assert [(output.max_steps, output.equal_fraction) for output in report.outputs] == [(0, 1.0)]


def test_old_runtime_answers_as_its_kernels_do_elsewhere_when_it_runs_on_a_board(
    bundle: Path, emulation: Emulation
) -> None:
    report = verify(bundle, device="qemu:pi4", runtime="tflite-runtime")
    assert report.passed, report.failures
    (output,) = report.outputs
    assert output.built_in_steps is not None
    assert output.built_in_steps <= 1
