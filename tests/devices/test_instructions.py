"""Guest instructions of one inference: exact, the same each time, and a gate."""

import json
import shutil
from pathlib import Path

import pytest

from edgeopt import verify
from edgeopt.cli.main import main
from edgeopt.devices import instructions
from edgeopt.devices.device import RunRequest
from edgeopt.devices.instructions import count_instructions
from edgeopt.devices.qemu import BOARDS, Emulation, QemuDevice
from edgeopt.errors import DeviceError, MissingDependencyError, RecipeError
from edgeopt.parity import manifest_digest
from edgeopt.settings import COUNTING_BOARDS, ParityLimits

LITERT = "ai-edge-litert"


def total(board: str, model: Path) -> int:
    return count_instructions(QemuDevice.named(board), model, LITERT, 120, by_operator=False).total


def test_count_is_the_same_to_the_last_instruction_when_it_is_taken_again(
    emulation: Emulation, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = count_instructions(QemuDevice.named("pi4"), bundle / "model.tflite", LITERT, 120)
    # Another place, another environment, and nothing but the total.
    elsewhere = Path(shutil.copy(bundle / "model.tflite", tmp_path / ("a-long-name" * 9 + ".tflite")))
    monkeypatch.setenv("PATH", "/somewhere/else:" + "x" * 333)
    assert total("pi4", elsewhere) == first.total
    assert sum(first.operators.values()) + (first.rest or 0) == first.total
    content = json.loads((bundle / "bundle.json").read_text())
    assert first.operators.keys() == content["operators"].keys()
    assert first.operators["CONV_2D"] > content["num_macs"] // 16  # 16 products an instruction at most, with int8
    assert abs(first.rest or 0) < first.total / 10


def test_dot_products_take_fewer_instructions_when_the_board_has_them(emulation: Emulation, bundle: Path) -> None:
    assert total("pi5", bundle / "model.tflite") < total("pi4", bundle / "model.tflite")


def test_verify_holds_the_limit_when_it_is_given_or_in_the_bundle(
    emulation: Emulation, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = total("pi4", bundle / "model.tflite")
    on_pi4 = [str(bundle), "--device", "qemu:pi4"]
    assert main(["verify", *on_pi4, "--max-instructions", str(counted), "--instructions"]) == 0
    shown = capsys.readouterr().out
    assert "instructions are not cycles" in shown
    assert f"{counted:,}" in shown

    limited = with_limit(bundle, tmp_path / "limited", {"pi4": counted - 1, "pi5": counted})
    assert main(["verify", str(limited), "--device", "qemu:pi4"]) == 12
    assert f"{counted:,} instructions an inference, limit {counted - 1:,}" in capsys.readouterr().err
    assert verify(limited, device="qemu:pi5").passed


def test_recipe_takes_limits_for_the_emulated_boards_and_no_others() -> None:
    assert set(COUNTING_BOARDS) == set(BOARDS)
    assert ParityLimits(max_instructions={"pi4": 1}).max_instructions == {"pi4": 1}
    with pytest.raises(RecipeError, match="got 'pi44'") as caught:
        ParityLimits(max_instructions={"pi44": 1})
    assert "did you mean 'pi4'?" in str(caught.value)
    with pytest.raises(RecipeError, match="at least 1, got 0 for pi4"):
        ParityLimits(max_instructions={"pi4": 0})


def test_limit_of_a_recipe_is_in_the_bundle_when_it_was_built(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert main(["build", "--quiet", "--set", "targets.arm64.parity.max_instructions.pi4=123456"]) == 0
    manifest = json.loads(Path("build/edgeopt/arm64/bundle.json").read_text())
    assert manifest["limits"]["max_instructions"] == {"pi4": 123456}


def with_limit(bundle: Path, folder: Path, limit: dict[str, int]) -> Path:
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["limits"]["max_instructions"] = limit
    manifest["digest"] = manifest_digest(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_verify_says_why_when_a_device_cannot_count(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--device", "local", "--latency", "0.01", "--instructions"]) == 0
    assert "local: not counted: instructions are counted on qemu:pi3" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--max-instructions", "1"]) == 2
    assert "--max-instructions needs a device that counts them" in capsys.readouterr().err


def test_counting_names_what_is_missing_when_there_is_no_compiler(
    emulation: Emulation, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = tmp_path / "plugin.c"
    source.write_text("int not_built_yet;")
    monkeypatch.setattr(instructions, "_PLUGIN", source)
    with pytest.raises(MissingDependencyError, match="no cc, gcc or clang") as caught:
        total("pi4", bundle / "model.tflite")
    assert "apt install gcc" in str(caught.value.hint)


def test_counting_gives_no_figure_when_the_plugin_or_the_model_does_not_run(
    emulation: Emulation, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = QemuDevice.named("pi4")
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes((bundle / "model.tflite").read_bytes()[:400])
    with pytest.raises(DeviceError, match="cannot count the instructions of the model"):
        count_instructions(device, damaged, LITERT, 60, by_operator=False)
    with pytest.raises(DeviceError, match="has no tensorflow"):
        device.runtime(RunRequest(runtime="tensorflow"))
