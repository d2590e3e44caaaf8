"""A whole emulated board: booted, driven over ssh, and switched off whatever happens."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_project import environment

from edgeopt.cli.main import main
from edgeopt.devices import board_image, machine
from edgeopt.devices.board import BoardDevice, booted_board
from edgeopt.devices.board_image import BoardImage
from edgeopt.devices.device import RunRequest, unfit
from edgeopt.devices.machine import running_machine
from edgeopt.devices.qemu import BOARDS
from edgeopt.errors import DeviceError, MissingDependencyError, UsageError


@pytest.fixture(scope="module")
def board(boards: BoardImage) -> Iterator[BoardDevice]:
    """A board that runs as long as the tests of this file, which leave it as it was."""
    with booted_board("pi4") as device:
        yield device


def with_test(bundle: Path, folder: Path, script: str) -> Path:
    """Copy a bundle and put another script in the place of its test, which is called ``built_parity.py`` there."""
    copy = Path(shutil.copytree(bundle, folder))
    (copy / "run_parity.py").rename(copy / "built_parity.py")
    (copy / "run_parity.py").write_text(script)
    return copy


def broken(image: BoardImage, folder: Path, **contents: bytes | None) -> BoardImage:
    """Return an image in which some files have other contents, or are missing."""
    shutil.copytree(image.folder / "first", folder / "first")
    for name in ("kernel", "disk.img", "host"):
        (folder / name).symlink_to(image.folder / name)
    for name, content in contents.items():
        path = next(path for path in folder.rglob("*") if path.stem == name)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    return replace(image, folder=folder)


def test_boards_answer_bit_for_bit_what_this_machine_answers_when_two_run_at_once(
    boards: BoardImage, bundle: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    devices = ["board:pi3", "board:pi5"]
    assert main(["verify", str(bundle), *(f"--device={name}" for name in devices), "--json", str(report)]) == 0
    verdicts = json.loads(report.read_text())["devices"]
    assert list(verdicts) == devices
    for name, verdict in verdicts.items():
        assert [(output["max_steps"], output["equal_fraction"]) for output in verdict["outputs"]] == [(0, 1.0)], name
        assert BOARDS[name.removeprefix("board:")].cpu in verdict["cpu"]


def test_board_says_that_it_is_emulated_and_what_its_own_kernel_says_when_asked(board: BoardDevice) -> None:
    facts = board.facts()
    assert facts.is_emulated
    assert board._ssh.facts().is_emulated  # the machine says so itself, also to those who reach it by its address
    assert facts.device == "board:pi4"
    assert facts.cpu.startswith("cortex-a72")
    assert "Linux 6." in facts.cpu
    assert (facts.architecture, facts.num_cpus) == ("aarch64", 4)
    assert "asimddp" not in facts.features
    assert {"numpy", "ai-edge-litert"} <= facts.runtimes.keys()


FILL_THE_DISK = """
import os, runpy, shutil
os.replace("built_parity.py", "run_parity.py")
os.posix_fallocate(os.open("/tmp/fill", os.O_CREAT | os.O_WRONLY), 0, shutil.disk_usage("/tmp").free)
runpy.run_path("run_parity.py", run_name="__main__")
"""


def test_board_gives_no_verdict_when_its_disk_gets_full(board: BoardDevice, bundle: Path, tmp_path: Path) -> None:
    filling = with_test(bundle, tmp_path / "filling", FILL_THE_DISK)
    with pytest.raises(DeviceError, match="No space left on device"):
        board.run(filling, RunRequest())
    reasons = [*unfit(board.facts(), json.loads((bundle / "bundle.json").read_text()), RunRequest())]
    assert [reason for reason in reasons if "bytes free" in reason] == reasons != []


def test_board_gives_no_verdict_when_it_reboots_in_the_middle(boards: BoardImage, bundle: Path, tmp_path: Path) -> None:
    rebooting = with_test(bundle, tmp_path / "copy", "import os, time\nos.system('reboot -f')\ntime.sleep(600)")
    began = time.monotonic()
    with (
        booted_board("pi3") as device,
        pytest.raises(DeviceError, match=r"board:pi3: .*(closed|reset|not responding|Broken pipe)"),
    ):
        device.run(rebooting, RunRequest())
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_machine_is_off_when_the_command_is_ended(boards: BoardImage, bundle: Path, number: int) -> None:
    command = [sys.executable, "-m", "edgeopt", "verify", str(bundle), "--device", "board:pi3", "--device", "board:pi4"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True)
    try:
        wait_until(lambda: len(machines_of(process.pid)) == 2)
        machines = machines_of(process.pid)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does it
        else:
            process.send_signal(number)
        assert process.wait(timeout=30) == (130 if number == signal.SIGINT else -number)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in machines))


def machines_of(pid: int) -> list[int]:
    """Return the machines that a process has started."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "qemu-system-aarch64" in line]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"disk": b"\0" * 4096}, "board: cannot mount the image"),
        ({"busybox": b"no program"}, "Kernel panic - not syncing"),
        ({"kernel": None}, "it ended: .*could not load kernel"),
    ],
)
def test_board_says_why_when_it_does_not_boot(
    boards: BoardImage, tmp_path: Path, contents: dict[str, bytes | None], message: str
) -> None:
    image = broken(boards, tmp_path / "image", **contents)
    (tmp_path / "machine").mkdir()
    began = time.monotonic()
    with pytest.raises(DeviceError, match=message), running_machine(image, BOARDS["pi3"], tmp_path / "machine"):
        pass
    assert time.monotonic() - began < 60


def test_machine_takes_another_port_and_reaches_nothing_here_when_somebody_has_the_first(
    boards: BoardImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        ports = iter([first, machine._free_port()])
        monkeypatch.setattr(machine, "_free_port", lambda: next(ports))
        with running_machine(boards, BOARDS["pi3"], tmp_path) as running:
            assert running.port != first
            reach = f"nc -w 2 10.0.2.2 {first} </dev/null"
            command = ["ssh", "-F", str(running.ssh_config), f"-p{running.port}", "root@127.0.0.1", reach]
            assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_set_up_changes_nothing_when_it_is_there(boards: BoardImage) -> None:
    before = os.stat(boards.folder / "setup.json")
    assert board_image.set_up() == boards
    assert os.stat(boards.folder / "setup.json") == before


def test_device_says_how_to_set_up_when_nothing_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="not set up") as caught, booted_board(""):
        pass
    assert "edgeopt device setup board" in str(caught.value.hint)


def test_device_is_refused_when_there_is_no_such_board() -> None:
    with pytest.raises(UsageError, match="no emulated board 'pi6'"), booted_board("pi6"):
        pass


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
