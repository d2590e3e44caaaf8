"""Set-ups of devices that are ended on the way: nothing is broken, and the next one goes on."""

import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_project import command, environment

from edgeopt.devices.construction import under_construction


def fetch_and_be_ended(home: Path) -> None:
    with under_construction(home) as (new, apt):
        apt.update()
        apt.install(["busybox-static:arm64"], new)
        raise KeyboardInterrupt


def test_next_set_up_goes_on_with_what_was_fetched_when_one_was_ended(tmp_path: Path) -> None:
    home = tmp_path / "kind"
    home.mkdir()
    (home / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        fetch_and_be_ended(home)
    assert [path.name for path in home.iterdir()] == ["old"]
    assert {path.name for path in tmp_path.iterdir()} == {"kind", ".kind.apt"}
    fetched = next((tmp_path / ".kind.apt/cache/archives").glob("busybox-static_*.deb"))
    before = fetched.stat()
    with under_construction(home) as (new, apt):
        apt.install(["busybox-static:arm64"], new)
        assert (fetched.stat().st_ino, fetched.stat().st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
    assert "old" not in {path.name for path in home.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"kind"}


def test_set_up_exits_with_130_and_leaves_no_half_of_it_when_ctrl_c_comes(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("device", "setup", "qemu"), stderr=subprocess.PIPE, text=True,
        env=environment({"XDG_CACHE_HOME": str(tmp_path)}),
    )  # fmt: skip
    archives = tmp_path / "edgeopt/.qemu.apt/cache/archives"
    deadline = time.monotonic() + 60
    while not [*archives.glob("*.deb"), *archives.glob("partial/*.deb")]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert {path.name for path in (tmp_path / "edgeopt").iterdir()} == {".qemu.apt", ".qemu.lock"}


# In MB: no room for the lists of packages, or for what is unpacked.
@pytest.mark.parametrize("room", [10, 150])
def test_set_up_exits_with_14_and_leaves_no_half_of_it_when_the_disk_is_full(tmp_path: Path, room: int) -> None:
    setup = shlex.join(command("device", "setup", "qemu"))
    script = (
        f"mount -t tmpfs -o size={room}m cache {tmp_path} && {setup}; code=$?; ls -A {tmp_path}/edgeopt; exit $code"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env=environment({"XDG_CACHE_HOME": str(tmp_path)}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 14, done.stderr
    assert "Traceback" not in done.stderr
    assert "the disk is full" in done.stderr or "space" in done.stderr
    assert done.stdout.split() == [".qemu.apt", ".qemu.lock"]
