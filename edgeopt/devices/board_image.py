"""What an emulated board is started from: qemu's machine emulator, Debian's arm64 kernel and an image of its disk.

``edgeopt device setup board`` makes it without root, from the machine's own apt sources and from the arm64 Python and
the wheels that ``qemu:`` devices have.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeopt.atomic import locked
from edgeopt.devices.construction import home_of, under_construction
from edgeopt.devices.debian import PrivateApt, is_full, program_in
from edgeopt.devices.qemu import Emulation, version_of_qemu
from edgeopt.devices.qemu import set_up as set_up_emulation
from edgeopt.errors import DeviceError, MissingDependencyError, StorageError
from edgeopt.stage import logger, report_progress, stage

_STATE = "setup.json"
_RUNTIME = "ai-edge-litert"
_PROGRAM = "usr/bin/qemu-system-aarch64"
_HOST_PACKAGES = ("qemu-system-arm", "e2fsprogs")
_BOARD_PACKAGES = ("dropbear-bin:arm64", "busybox-static:arm64")
_KERNEL = "linux-image-cloud-arm64:arm64"
_MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net")
_MOUNTED = ("dev", "proc", "root", "run", "sys", "tmp")
_ACCOUNTS = {"passwd": "root:x:0:0:root:/root:/bin/sh", "group": "root:x:0:", "shells": "/bin/sh"}


@dataclass(frozen=True)
class BoardImage:
    """A finished set-up: where it lies, and the versions of what is in it."""

    folder: Path
    linux: str
    qemu: str
    runtimes: Mapping[str, str]

    @property
    def kernel(self) -> Path:
        """Return the kernel."""
        return self.folder / "kernel"

    @property
    def disk(self) -> Path:
        """Return the image of the disk, an ext4 file system."""
        return self.folder / "disk.img"

    def first_files(self) -> dict[str, bytes]:
        """Return what the kernel needs before it can read the disk."""
        return {
            path.relative_to(self.folder / "first").as_posix(): path.read_bytes()
            for path in sorted((self.folder / "first").rglob("*"))
            if path.is_file()
        }

    def qemu_command(self) -> list[str]:
        """Return how to start the machine emulator; its options come behind it."""
        return program_in(self.folder / "host", _PROGRAM)

    @classmethod
    def load(cls, folder: Path | None = None) -> BoardImage:
        """Return the set-up of this user.

        Raises:
            MissingDependencyError: there is none.
        """
        home = folder or home_of("board")
        try:
            return cls(home, **json.loads((home / _STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise MissingDependencyError(
                f"emulated boards are not set up in {home}",
                hint="edgeopt device setup board (no root, about a minute)",
            ) from error


def is_set_up() -> bool:
    """Return whether this user's image is there and has the runtime that ``qemu:`` devices have."""
    try:
        return _present(home_of("board"), Emulation.load()) is not None
    except MissingDependencyError:
        return False


def set_up(*, force: bool = False) -> BoardImage:
    """Fetch and make all that ``board:`` devices need, ``qemu:`` devices first; what is there and fits is kept.

    Raises:
        MissingDependencyError: no apt or no pip here.
        DeviceError: a package cannot be had.
        StorageError: the disk is full.
    """
    emulation = set_up_emulation()
    home = home_of("board")
    with stage("setup"), locked(home.with_name(f".{home.name}.lock")):
        if not force and (present := _present(home, emulation)) is not None:
            logger.info("boards are set up in %s", home)
            return present
        with under_construction(home) as (new, apt):
            _build(new, apt, emulation)
        return BoardImage.load(home)


def _present(home: Path, emulation: Emulation) -> BoardImage | None:
    try:
        found = BoardImage.load(home)
    except MissingDependencyError:
        return None
    return found if found.runtimes == emulation.runtimes[_RUNTIME] else None


def _build(home: Path, apt: PrivateApt, emulation: Emulation) -> None:
    apt.update()
    host, board, kernel = apt.needed(_HOST_PACKAGES), apt.needed(_BOARD_PACKAGES), _kernel_package(apt)
    logger.info("fetching %.0f MB and a kernel of about 21 MB", (host.size_bytes + board.size_bytes) / 1e6)
    apt.install(_HOST_PACKAGES, home / "host")
    apt.install_alone(kernel, home / "linux")
    root = home / "root"
    shutil.copytree(emulation.folder / "arm64", root, symlinks=True, copy_function=os.link)
    apt.install(_BOARD_PACKAGES, root)
    _keep_kernel(home, root)
    _fill_root(root, emulation)
    _make_disk(home, root)
    for finished in (root, home / "linux"):
        shutil.rmtree(finished)
    state = {
        "linux": kernel.removeprefix("linux-image-").removesuffix(":arm64"),
        "qemu": version_of_qemu(program_in(home / "host", _PROGRAM)),
        "runtimes": emulation.runtimes[_RUNTIME],
    }
    (home / _STATE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _kernel_package(apt: PrivateApt) -> str:
    """Return the package of the newest kernel; it alone is fetched, not what would install it."""
    found = (re.match(r"(linux-image-\d[^_]*)_", name) for name in apt.needed([_KERNEL]).files)
    return next(match[1] for match in found if match) + ":arm64"


def _keep_kernel(home: Path, root: Path) -> None:
    """Put kernel, shell and drivers where :meth:`BoardImage.first_files` finds them."""
    next((home / "linux/boot").glob("vmlinuz-*")).rename(home / "kernel")
    first = home / "first"
    for name in ("bin", "modules"):
        (first / name).mkdir(parents=True)
    shutil.copy2(_busybox(root), first / "bin")
    for name in _MODULES:
        for path in (home / "linux").rglob(f"{name}.ko*"):
            content = path.read_bytes()
            (first / "modules" / f"{name}.ko").write_bytes(
                lzma.decompress(content) if path.suffix == ".xz" else content
            )


def _fill_root(root: Path, emulation: Emulation) -> None:
    """Add a user, the shell's commands, the runtime, and the folders that are mounted over."""
    packages = root / f"usr/local/lib/python{emulation.python}/dist-packages"
    shutil.copytree(emulation.folder / "site" / _RUNTIME, packages, symlinks=True, copy_function=os.link)
    for name in _MOUNTED:
        (root / name).mkdir(exist_ok=True)
    for name, content in _ACCOUNTS.items():
        (root / "etc" / name).unlink(missing_ok=True)  # it may be a file of the emulation's too
        (root / "etc" / name).write_text(content + "\n", encoding="ascii")
    busybox = _busybox(root)
    listed = subprocess.run(
        [*emulation.qemu_command("pi4"), str(busybox), "--list"], capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        if not (busybox.parent / name).is_symlink() and not (busybox.parent / name).exists():
            (busybox.parent / name).symlink_to("busybox")


def _busybox(root: Path) -> Path:
    return next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.is_file())


def _make_disk(home: Path, root: Path) -> None:
    report_progress("make the disk", 0, 1)
    used = sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))
    command = [*program_in(home / "host", "sbin/mke2fs"), "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"]
    command += ["-i", "8192", "-E", "root_owner=0:0", "-d", str(root), str(home / "disk.img"), f"{used // 800}k"]
    environment = {**os.environ, "MKE2FS_CONFIG": str(home / "host/etc/mke2fs.conf")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if is_full(result.stderr):
        raise StorageError("cannot write the board's disk: this one is full", hint="free some space and call it again")
    if result.returncode != 0:
        raise DeviceError(f"cannot make the board's disk: {result.stderr.strip()[-300:]}")
    report_progress("make the disk", 1, 1)
