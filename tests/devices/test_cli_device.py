"""The commands around devices: list, info, several at once, JUnit."""

import json
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ssh_server import Server
from test_ssh import stand_in

from edgeopt.cli.main import main
from edgeopt.devices.qemu import Emulation
from edgeopt.parity import manifest_digest


def without_packages(server: Server) -> str:
    """Return a device whose Python has neither NumPy nor a runtime."""
    return server.url(python=stand_in(server.folder, "python", f'exec {sys.executable} -S "$@"'))


def test_verify_shows_all_devices_and_writes_junit_when_several_are_asked(
    emulation: Emulation, server: Server, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit, report = tmp_path / "junit.xml", tmp_path / "report.json"
    devices = ["local", "qemu:pi3", server.url()]
    arguments = [part for device in devices for part in ("--device", device)]
    code = main(["verify", str(bundle), *arguments, "--junit", str(junit), "--json", str(report)])
    assert code == 0
    shown = capsys.readouterr().out
    assert all(f"{device}:" in shown for device in devices)
    content = json.loads(report.read_text())
    assert content["passed"]
    assert list(content["devices"]) == sorted(devices)
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "0", "0")
    assert [case.get("name") for case in suite] == devices


def test_verify_judges_the_others_when_one_device_cannot_be_reached(
    server: Server, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.process.kill()
    server.process.wait()
    junit = tmp_path / "junit.xml"
    code = main(["verify", str(bundle), "--device", server.url(), "--device", "local", "--junit", str(junit)])
    assert code == 15
    assert "passed in ai-edge-litert" in capsys.readouterr().out
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "1")
    assert "Connection refused" in suite[0][0].attrib["message"]


def test_verify_exits_with_12_when_one_of_several_says_no(
    server: Server, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = Path(shutil.copytree(bundle, tmp_path / "strict"))
    manifest = json.loads((strict / "bundle.json").read_text())
    manifest["limits"]["min_sqnr_db"] = 199.0
    manifest["digest"] = manifest_digest(manifest)
    (strict / "bundle.json").write_text(json.dumps(manifest))
    junit = tmp_path / "junit.xml"
    arguments = ["--device", server.url(), "--device", "local", "--junit", str(junit)]
    assert main(["verify", str(strict), *arguments]) == 12
    assert "dB to the float network" in capsys.readouterr().err
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "2", "0")


def test_list_says_what_is_ready_when_nothing_is_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["device", "list", "--json", "-"]) == 0
    listed = json.loads(capsys.readouterr().out)
    emulated = [f"{kind}:{board}" for kind in ("qemu", "board") for board in ("pi3", "pi4", "pi5")]
    assert {name: facts["ready"] for name, facts in listed.items()} == {"local": True, **dict.fromkeys(emulated, False)}
    assert main(["device", "list"]) == 0
    shown = capsys.readouterr().out
    assert "edgeopt device setup qemu" in shown
    assert "edgeopt device setup board" in shown


def test_info_says_whether_a_bundle_can_run_when_one_is_named(
    emulation: Emulation, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", "info", "qemu:pi5", "--bundle", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "cortex-a76" in shown
    assert "can run there" in shown


def test_info_exits_with_15_when_the_bundle_cannot_run_there(
    server: Server, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", "info", without_packages(server), "--bundle", str(bundle)]) == 15
    assert "has no NumPy" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qmeu:pi4", "", "abd"])
def test_verify_exits_with_2_when_there_is_no_such_device(
    name: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle), "--device", name]) == 2
    assert "there is no device" in capsys.readouterr().err


def test_build_runs_the_finished_bundle_elsewhere_too_when_asked(
    emulation: Emulation, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["build", "--device", "qemu:pi4", "--device", "qemu:pi5", "--json", "build.json"]) == 0
    shown = capsys.readouterr()
    assert "passed in ai-edge-litert" in shown.out
    verdicts = json.loads(Path("build.json").read_text())["devices"]["arm64"]
    assert {name: verdict["outputs"][0]["max_steps"] for name, verdict in verdicts.items()} == {
        "qemu:pi4": 0, "qemu:pi5": 0,
    }  # fmt: skip
    # Without instructions for dot products int8 is more work than float, and the build says so.
    pi4, pi5 = (verdicts[f"qemu:{board}"]["instructions"] for board in ("pi4", "pi5"))
    assert pi4["total"] > pi4["float_total"]
    assert pi5["total"] < pi5["float_total"]
    assert f"qemu:pi4: the bundle takes {pi4['total']:,} instructions" in shown.err
    assert "qemu:pi5: the bundle takes" not in shown.err


def test_build_writes_no_depfile_when_a_device_gives_no_verdict(
    server: Server, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert main(["build", "--device", without_packages(server), "--depfile", "build.d", "--quiet"]) == 15
    assert not Path("build.d").exists()
    assert Path("build/edgeopt/arm64/bundle.json").is_file()
