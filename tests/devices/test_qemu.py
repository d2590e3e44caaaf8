"""Real aarch64 code in emulation: a bundle answers there what it answers here."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeopt import verify
from edgeopt.devices import qemu
from edgeopt.devices.qemu import BOARDS, Emulation, QemuDevice, set_up
from edgeopt.errors import DeviceError, MissingDependencyError, UsageError
from edgeopt.parity import manifest_digest


@pytest.mark.parametrize("board", BOARDS)
def test_board_answers_bit_for_bit_what_this_machine_answers_when_litert_runs_there(
    emulation: Emulation, bundle: Path, board: str
) -> None:
    report = verify(bundle, device=f"qemu:{board}")
    assert report.passed, report.failures
    assert report.steps_judged
    assert [output.max_steps for output in report.outputs] == [0]
    assert [output.equal_fraction for output in report.outputs] == [1.0]


def test_board_runs_the_old_runtime_too_when_it_is_asked_for(emulation: Emulation, bundle: Path) -> None:
    report = verify(bundle, device="qemu:pi4", runtime="tflite-runtime")
    assert report.passed, report.failures
    assert report.runtime == "tflite-runtime 2.14.0"
    assert [output.built_in_steps for output in report.outputs] == [0]


@pytest.mark.parametrize("board", BOARDS)
def test_board_says_what_it_is_when_asked(emulation: Emulation, board: str) -> None:
    facts = QemuDevice.named(board).facts()
    assert facts.architecture == "aarch64"
    assert facts.is_emulated
    assert facts.cpu.startswith(BOARDS[board].cpu)
    assert ("asimddp" in facts.features) == (board == "pi5")
    assert {"numpy", "ai-edge-litert", "tflite-runtime"} <= facts.runtimes.keys()


@pytest.mark.parametrize("board", BOARDS)
def test_cpu_that_code_sees_is_the_one_that_is_emulated(emulation: Emulation, board: str) -> None:
    look = "import ctypes; c = ctypes.CDLL(None); c.getauxval.restype = ctypes.c_ulong; print(c.getauxval(16))"
    finished = QemuDevice.named(board).python("ai-edge-litert", ["-c", look], 60)
    has_dot_products = bool(int(finished.stdout) & 1 << 20)  # HWCAP_ASIMDDP
    assert has_dot_products == ("asimddp" in BOARDS[board].features.split())
    cpuinfo = QemuDevice.named(board).python("ai-edge-litert", ["-c", "print(open('/proc/cpuinfo').read())"], 60)
    assert cpuinfo.stdout.strip() == BOARDS[board].cpuinfo().strip()


def test_code_on_a_board_sees_nothing_of_this_process_environment(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "here")
    monkeypatch.setenv("SECRET", "here")
    finished = QemuDevice.named("pi4").python("ai-edge-litert", ["-c", "import os; print(dict(os.environ))"], 60)
    assert "here" not in finished.stdout


def test_flipped_byte_is_refused_by_the_board_itself(emulation: Emulation, bundle: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    content = bytearray((changed / "model.tflite").read_bytes())
    content[100] ^= 1
    (changed / "model.tflite").write_bytes(content)
    with pytest.raises(DeviceError, match="is not the file that was built"):
        QemuDevice.named("pi4").run(changed, qemu.RunRequest())


def test_hanging_bundle_is_ended_when_the_time_is_over(emulation: Emulation, bundle: Path, tmp_path: Path) -> None:
    slow = Path(shutil.copytree(bundle, tmp_path / "slow"))
    (slow / "run_parity.py").write_text("import time; time.sleep(600)")
    with pytest.raises(DeviceError, match="no answer within 3 s"):
        QemuDevice.named("pi4").run(slow, qemu.RunRequest(timeout_s=3))


def test_set_up_is_quick_and_changes_nothing_when_it_is_there(emulation: Emulation) -> None:
    before = os.stat(emulation.folder / "setup.json")
    assert set_up() == emulation
    assert os.stat(emulation.folder / "setup.json") == before


def test_set_up_leaves_the_old_one_when_it_fails(
    emulation: Emulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "cache" / "qemu"
    home.parent.mkdir()
    home.mkdir()
    (home / "setup.json").write_text("{}")
    monkeypatch.setattr(qemu, "_HOST_PACKAGES", ("no-such-package",))
    with pytest.raises(DeviceError, match="Unable to locate package no-such-package"):
        set_up(home)
    assert [path.name for path in home.iterdir()] == ["setup.json"]
    assert {path.name for path in home.parent.iterdir()} == {"qemu", ".qemu.apt", ".qemu.lock"}


def test_device_says_how_to_set_up_when_nothing_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="not set up") as caught:
        QemuDevice.named("pi4")
    assert "edgeopt device setup qemu" in str(caught.value.hint)


def test_device_is_refused_when_there_is_no_such_board() -> None:
    with pytest.raises(UsageError, match="no emulated board 'pi6'") as caught:
        QemuDevice.named("pi6")
    assert "pi5" in str(caught.value.hint)


def test_old_runtime_is_refused_before_the_model_is_loaded_when_it_lacks_an_operator_version(
    emulation: Emulation, bundle: Path, tmp_path: Path
) -> None:
    newer = Path(shutil.copytree(bundle, tmp_path / "newer"))
    content = (newer / "model.tflite").read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    code = next(c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED)
    code.version = 12
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    sealed(newer, "model.tflite", bytes(builder.Output()))
    with pytest.raises(DeviceError) as caught:
        verify(newer, device="qemu:pi4", runtime="tflite-runtime")
    reason = "its tflite-runtime 2.14.0 is older than 2.17.0, the first release with FULLY_CONNECTED version 12"
    assert str(caught.value).endswith(f"cannot run this bundle: {reason}")
    assert verify(newer, device="qemu:pi4").passed  # its LiteRT is newer


def sealed(bundle: Path, name: str, content: bytes) -> None:
    """Write a file of a bundle and its hash."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    manifest["digest"] = manifest_digest(manifest)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
