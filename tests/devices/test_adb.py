"""Verifying over adb, against Debian's arm64 adbd on an emulated board. This is not Android; see adb_board.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from adb_board import SERIAL, AdbBoard

from edgeopt import verify
from edgeopt.cli.main import main
from edgeopt.devices.adb import AdbAddress, AdbDevice
from edgeopt.devices.compiler import Compiler
from edgeopt.devices.device import RunRequest, unfit
from edgeopt.errors import DeviceError, EdgeoptError, MissingDependencyError, UsageError


@pytest.fixture(autouse=True)
def clean(adb_board: AdbBoard) -> Iterator[None]:
    """Every test leaves the device as it was."""
    yield
    wait_until(lambda: adb(adb_board, "shell", "ls /data/local/tmp") == "")


def adb(board: AdbBoard, *arguments: str) -> str:
    return subprocess.run([board.client, *arguments], capture_output=True, text=True, check=True).stdout


def device_with(runner: Path) -> str:
    return f"adb:{SERIAL}?{urlencode({'runner': runner})}"


def stand_in(folder: Path, script: str) -> str:
    """Return a device whose runner is a shell script."""
    folder.mkdir()
    (folder / "run_parity").write_text("#!/bin/sh\n" + script)
    (folder / "run_parity").chmod(0o755)
    (folder / "libLiteRt.so").touch()
    return device_with(folder)


def test_debians_adbd_which_is_not_android_answers_bit_for_bit_by_the_runner_in_c(
    adb_board: AdbBoard, runner_in_c: Path, bundle: Path, tmp_path: Path
) -> None:
    strange = tmp_path / "a 'b\" $(touch hacked); c"
    shutil.copytree(runner_in_c, strange / "runner")
    shutil.copytree(bundle, strange / "bundle")
    report = verify(strange / "bundle", device=f"adb?{urlencode({'runner': strange / 'runner'})}")
    assert report.passed, report.failures
    assert [(output.max_steps, output.equal_fraction) for output in report.outputs] == [(0, 1.0)]
    assert not Path("hacked").exists()


def test_two_verifications_at_once_do_not_disturb_each_other(
    adb_board: AdbBoard, runner_in_c: Path, bundle: Path
) -> None:
    reports: list[bool] = []
    device = device_with(runner_in_c)
    threads = [threading.Thread(target=lambda: reports.append(verify(bundle, device=device).passed)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports == [True, True]


def test_device_refuses_a_bundle_itself_when_a_byte_was_flipped(
    adb_board: AdbBoard, runner_in_c: Path, bundle: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    content = bytearray((changed / "model.tflite").read_bytes())
    content[100] ^= 1
    (changed / "model.tflite").write_bytes(content)
    with pytest.raises(DeviceError, match="is not the file that was built"):
        AdbDevice(device_with(runner_in_c)).run(changed, RunRequest())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo not json > report.json", "answered no report"),
        ("""echo '{"passed": true, "failures": []}' > report.json""", "answered no report"),
        ("echo a word >&2; exit 12", "ended without a report: a word"),
        ("kill -9 $$", "ended without a report"),
        ("sleep 600", "ended without a report"),
    ],
)
def test_verify_gives_no_verdict_when_the_device_answers_garbage_or_nothing(
    adb_board: AdbBoard, bundle: Path, tmp_path: Path, script: str, message: str
) -> None:
    began = time.monotonic()
    with pytest.raises(DeviceError, match=message):
        verify(bundle, device=stand_in(tmp_path / "runner", script), timeout_s=2)
    assert time.monotonic() - began < 30


def test_device_is_clean_when_the_connection_breaks_in_the_middle(
    adb_board: AdbBoard, bundle: Path, tmp_path: Path
) -> None:
    caught: list[EdgeoptError] = []

    def run() -> None:
        try:
            verify(bundle, device=stand_in(tmp_path / "runner", "touch started; sleep 600"), timeout_s=60)
        except EdgeoptError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: "started" in adb(adb_board, "shell", "ls /data/local/tmp/*/started 2>/dev/null; true"))
    adb(adb_board, "disconnect", SERIAL)
    thread.join(timeout=60)
    adb(adb_board, "connect", SERIAL)
    assert not thread.is_alive()
    assert isinstance(caught[0], DeviceError)
    wait_until(lambda: "sleep 600" not in adb(adb_board, "shell", "ps"))


def test_device_gives_no_verdict_when_its_disk_is_full(adb_board: AdbBoard, runner_in_c: Path, bundle: Path) -> None:
    device = AdbDevice(device_with(runner_in_c))
    free = device.facts().free_bytes
    assert free is not None
    adb(adb_board, "shell", f"fallocate -l {free} /data/fill")
    try:
        reasons = [*unfit(device.facts(), json.loads((bundle / "bundle.json").read_text()), RunRequest())]
        assert [reason for reason in reasons if "bytes free" in reason] == reasons != []
        with pytest.raises(DeviceError, match="No space left on device"):
            device.run(bundle, RunRequest())
    finally:
        adb(adb_board, "shell", "rm /data/fill")


def test_info_says_what_the_device_is_and_that_the_bundle_can_run_there(
    adb_board: AdbBoard, bundle: Path, cross_compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", "info", "adb", "--bundle", str(bundle)]) == 0
    shown = capsys.readouterr()
    assert "Cortex-A72, 4 cores, aarch64" in shown.out
    assert "(emulated)" in shown.out


def test_verify_names_the_devices_when_several_are_connected(adb_board: AdbBoard, bundle: Path) -> None:
    adb(adb_board, "connect", "localhost:5555")
    try:
        with pytest.raises(UsageError, match=f"several devices are connected: {SERIAL}, localhost:5555"):
            verify(bundle, device="adb")
        with pytest.raises(DeviceError, match="adb sees no device 'localhost'") as caught:
            verify(bundle, device="adb:localhost")
        assert "localhost:5555" in str(caught.value.hint)
    finally:
        adb(adb_board, "disconnect", "localhost:5555")


def test_verify_says_how_to_mend_it_when_no_device_is_connected(adb_board: AdbBoard, bundle: Path) -> None:
    adb(adb_board, "disconnect", SERIAL)
    try:
        with pytest.raises(DeviceError, match="adb sees no device") as caught:
            verify(bundle, device="adb")
        assert "USB debugging" in str(caught.value.hint)
    finally:
        adb(adb_board, "connect", SERIAL)


@pytest.mark.parametrize(
    ("state", "hint"),
    [("unauthorized", "allow USB debugging"), ("offline", "adb reconnect"), ("no permissions; see [x]", "udev")],
)
def test_verify_says_how_to_mend_it_when_the_device_lets_nobody_in(
    adb_board: AdbBoard, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, hint: str
) -> None:
    client = tmp_path / "adb"
    client.write_text(f"#!/bin/sh\nprintf 'List of devices attached\\n0123\\t%s\\n\\n' '{state}'\n")
    client.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("ADB", str(client))
        with pytest.raises(DeviceError, match=f"adb:0123 is {state[:6]}") as caught:
            verify(bundle, device="adb")
    assert hint in str(caught.value.hint)


def test_verify_says_what_to_install_when_there_is_no_adb(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("ADB")
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingDependencyError, match="there is no adb on PATH") as caught:
            verify(bundle, device="adb")
    assert "apt install adb" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adb?shell=x", "unknown option 'shell'"),
        ("adb:1?runner", "is no device"),
        ("adb?runner=/nowhere", "/nowhere has no run_parity"),
    ],
)
def test_address_is_refused_when_it_is_none(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdbAddress.parse(name)


def test_address_is_read_when_the_serial_has_a_port() -> None:
    assert AdbAddress.parse("adb:192.168.1.5:5555?python=/opt/python3") == AdbAddress(
        "192.168.1.5:5555", None, "/opt/python3"
    )


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
