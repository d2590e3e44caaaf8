"""Real aarch64 code on another machine: user-mode emulation of a named board's CPU, set up without root.

``edgeopt device setup qemu`` unpacks qemu, an arm64 Python and its libraries from the machine's own apt sources, and
the aarch64 wheels of two TFLite runtimes, below the user's cache. Each runtime has a folder of its own, because
tflite-runtime needs NumPy 1.

Two things must agree, or answers are wrong without a word: the CPU that qemu emulates, and the ``/proc/cpuinfo`` that
the code reads. LiteRT's XNNPACK chooses kernels by the CPU part in that file, and crashes on an x86 one; qemu 7.2's
default CPU has an SME path that makes int8 wrong. So a board always names both.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeopt.atomic import locked
from edgeopt.devices.construction import home_of, under_construction
from edgeopt.devices.debian import PrivateApt, is_full, program_in
from edgeopt.devices.device import PYTHON, DeviceFacts, RunRequest
from edgeopt.devices.process import Finished, run_limited
from edgeopt.errors import DeviceError, MissingDependencyError, StorageError, UsageError, did_you_mean
from edgeopt.stage import logger, stage, track

_STATE = "setup.json"
_HOST_PACKAGES = ("qemu-user",)
_PROGRAM = "usr/bin/qemu-aarch64"
_BOARD_PACKAGES = ("python3-minimal:arm64", "libpython3-stdlib:arm64", "libstdc++6:arm64")
_PROBE = Path(__file__).with_name("probe.py")
_A_LOOK_S = 120.0


@dataclass(frozen=True)
class Board:
    """A board by its CPU: qemu's name of it, and what Linux says of it in ``/proc/cpuinfo``."""

    title: str
    cpu: str
    part: str
    features: str
    num_cpus: int = 4

    def cpuinfo(self) -> str:
        """Return the text of ``/proc/cpuinfo``."""
        core = (
            f"BogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: 0x0\nCPU part\t: {self.part}\nCPU revision\t: 0\n\n"
        )
        return "".join(f"processor\t: {index}\n{core}" for index in range(self.num_cpus))


_V8 = "fp asimd evtstrm crc32 cpuid"
_V8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
BOARDS: Mapping[str, Board] = {
    "pi3": Board("Raspberry Pi 3", "cortex-a53", "0xd03", _V8),
    "pi4": Board("Raspberry Pi 4", "cortex-a72", "0xd08", _V8),
    "pi5": Board("Raspberry Pi 5", "cortex-a76", "0xd0b", _V8_2),
}
DEFAULT_BOARD = "pi4"


# ---------------------------------------------------------------- set up


@dataclass(frozen=True)
class Emulation:
    """A finished set-up: where it lies, the Python in it, and what each runtime's folder holds."""

    folder: Path
    python: str
    qemu: str
    runtimes: Mapping[str, Mapping[str, str]]

    def qemu_command(self, board: str) -> list[str]:
        """Return how to run an aarch64 program on a board's CPU; the program and its arguments come behind it."""
        prefix = self.folder / "boards" / board
        return [*program_in(self.folder / "host", _PROGRAM), "-cpu", BOARDS[board].cpu, "-L", str(prefix)]

    @classmethod
    def load(cls, folder: Path | None = None) -> Emulation:
        """Return the set-up of this user.

        Raises:
            MissingDependencyError: there is none.
        """
        home = folder or home_of("qemu")
        try:
            state = json.loads((home / _STATE).read_text(encoding="utf-8"))
            return cls(home, state["python"], state["qemu"], state["runtimes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MissingDependencyError(
                f"aarch64 emulation is not set up in {home}", hint="edgeopt device setup qemu (no root, under a minute)"
            ) from error


def is_set_up() -> bool:
    """Return whether this user's emulation is there and has the runtime that is installed here."""
    return _present(home_of("qemu")) is not None


def set_up(folder: Path | None = None, *, force: bool = False) -> Emulation:
    """Fetch and unpack all that ``qemu:`` devices need; what is there and fits is kept.

    Args:
        folder: by default the user's cache.
        force: do it again in any case.

    Raises:
        MissingDependencyError: no apt or no pip here.
        DeviceError: a package cannot be had, or the finished emulation does not run.
    """
    home = folder or home_of("qemu")
    home.parent.mkdir(parents=True, exist_ok=True)
    with stage("setup"), locked(home.with_name(f".{home.name}.lock")):
        if not force and (present := _present(home)) is not None:
            logger.info("qemu is set up in %s", home)
            return present
        with under_construction(home) as (new, apt):
            _build(new, apt)
        return Emulation.load(home)


def _present(home: Path) -> Emulation | None:
    """Return the set-up that is there, if it has the runtime that is installed here."""
    try:
        found = Emulation.load(home)
    except MissingDependencyError:
        return None
    return found if found.runtimes["ai-edge-litert"]["ai-edge-litert"] == _installed_litert() else None


def _build(home: Path, apt: PrivateApt) -> None:
    apt.update()
    host, board = apt.needed(_HOST_PACKAGES), apt.needed(_BOARD_PACKAGES)
    total = (host.size_bytes + board.size_bytes) / 1e6
    logger.info("fetching %d packages, %.0f MB, and wheels of about 45 MB", len(host.files + board.files), total)
    apt.install(_HOST_PACKAGES, home / "host")
    apt.install(_BOARD_PACKAGES, home / "arm64")
    python = next((home / "arm64/usr/bin").glob("python3.[0-9]*")).name.removeprefix("python")
    glibc = _glibc_minor(board.files)
    runtimes = {
        name: _install_wheels(wheels, home / "site" / name, python, glibc) for name, wheels in _wanted(python).items()
    }
    for name, item in BOARDS.items():
        _write_prefix(home / "boards" / name, item)
    emulation = Emulation(home, python, version_of_qemu(program_in(home / "host", _PROGRAM)), runtimes)
    for name in track(runtimes, total=len(runtimes), description="first start"):
        _check_start(emulation, name)
    state = {"python": python, "qemu": emulation.qemu, "runtimes": runtimes}
    (home / _STATE).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _wanted(python: str) -> dict[str, tuple[str, ...]]:
    """Return the wheels of each runtime; LiteRT in the version that is installed here, so that only the CPU differs."""
    wanted: dict[str, tuple[str, ...]] = {"ai-edge-litert": ("numpy", f"ai-edge-litert=={_installed_litert()}")}
    if tuple(map(int, python.split("."))) <= (3, 11):
        wanted["tflite-runtime"] = ("numpy<2", "tflite-runtime==2.14.0")
    else:
        logger.warning("tflite-runtime has no wheels for Python %s, so qemu devices will not have it", python)
    return wanted


def _installed_litert() -> str:
    return metadata.version("ai-edge-litert")


def _glibc_minor(files: Iterable[str]) -> int:
    version = next(match for name in files if (match := re.match(r"libc6_2\.(\d+)", name)))
    return int(version[1])


def _install_wheels(wheels: Sequence[str], site: Path, python: str, glibc: int) -> dict[str, str]:
    """Unpack aarch64 wheels into a folder; pip checks them against its index. Return their versions."""
    site.mkdir(parents=True)
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(glibc, 16, -1)]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
        "--only-binary=:all:", *platforms, "--platform=manylinux2014_aarch64", "--implementation=cp",
        f"--python-version={python}", f"--dest={site}", *wheels,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        if "No module named pip" in result.stderr:
            raise MissingDependencyError("this Python has no pip", hint=f"{sys.executable} -m ensurepip")
        if is_full(result.stderr):
            raise StorageError(f"cannot fetch {wheels[-1]}: the disk is full", hint="free some space and call it again")
        raise DeviceError(f"pip cannot have {' '.join(wheels)} for aarch64: {result.stderr.strip()[-400:]}")
    versions = {}
    for path in track(sorted(site.glob("*.whl")), total=len(wheels), description=f"unpack {wheels[-1]}"):
        name, version = path.name.split("-")[:2]
        versions[name.replace("_", "-")] = version
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(site)
        path.unlink()
    return versions


def _write_prefix(prefix: Path, board: Board) -> None:
    """Make the folder in which qemu looks first for every absolute path that the emulated code opens."""
    (prefix / "proc").mkdir(parents=True)
    (prefix / "proc/cpuinfo").write_text(board.cpuinfo(), encoding="ascii")
    cpus = prefix / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in ("online", "possible", "present"):
        (cpus / name).write_text(f"0-{board.num_cpus - 1}\n", encoding="ascii")
    for name in ("etc", "lib", "usr"):
        (prefix / name).symlink_to(Path("../../arm64") / name)


def version_of_qemu(program: Sequence[str]) -> str:
    """Start an emulator that was unpacked and return its version.

    Raises:
        DeviceError: it does not start.
    """
    result = subprocess.run([*program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\S+)", result.stdout)
    if found is None:
        raise DeviceError(f"the qemu that was unpacked does not start: {result.stderr.strip()[-300:]}")
    return found[1]


def _check_start(emulation: Emulation, runtime: str) -> None:
    """Load a runtime once; this also leaves its bytecode behind, which makes every later start twice as fast."""
    module = runtime.replace("-", "_")
    device = QemuDevice(DEFAULT_BOARD, emulation)
    result = device.python(runtime, ["-c", f"import {module}.interpreter"], _A_LOOK_S, writes_bytecode=True)
    if result.returncode != 0:
        raise DeviceError(f"{runtime} does not start in emulation: {result.last_words()}")


# ---------------------------------------------------------------- the device


class QemuDevice:
    """One board's CPU in emulation."""

    def __init__(self, board: str, emulation: Emulation) -> None:
        self._key, self._board = board, BOARDS[board]
        self._emulation = emulation
        self.name = f"qemu:{board}"

    @property
    def board(self) -> str:
        """The board's key, such as ``pi4``."""
        return self._key

    @property
    def folder(self) -> Path:
        """Where the emulator lies."""
        return self._emulation.folder

    @property
    def qemu(self) -> str:
        """The emulator's version."""
        return self._emulation.qemu

    @classmethod
    def named(cls, board: str) -> QemuDevice:
        """Return the device of a board's name.

        Raises:
            UsageError: there is no such board.
            MissingDependencyError: emulation is not set up.
        """
        chosen = board or DEFAULT_BOARD
        if chosen not in BOARDS:
            raise UsageError(f"there is no emulated board {chosen!r}", hint=did_you_mean(chosen, list(BOARDS)))
        return cls(chosen, Emulation.load())

    def facts(self) -> DeviceFacts:
        """Look from inside, with the runtimes of all folders."""
        told: dict[str, Any] = {}
        runtimes: dict[str, str] = {}
        for runtime, versions in self._emulation.runtimes.items():
            if not told:
                told = self._look(runtime)
            runtimes = {**versions, **runtimes}
        title = f"{self._board.cpu}, {self._board.title}'s, emulated by qemu {self._emulation.qemu}"
        seen_from_outside = {"device": self.name, "is_emulated": True, "cpu": title, "memory_bytes": None}
        features = tuple(told["features"])
        return DeviceFacts(**{**told, **seen_from_outside, "runtimes": runtimes, "features": features})

    def run(self, bundle: Path, request: RunRequest) -> str:
        """Run the bundle where it lies; only its report is written, to a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="edgeopt.") as work:
            report = Path(work) / "report.json"
            arguments = request.arguments(str(report))
            if request.runner.name == PYTHON:
                script = str(bundle.resolve() / "run_parity.py")
                finished = self.python(self.runtime(request), [script, *arguments], request.timeout_s)
            else:
                finished = self._emulated([*request.runner.command_here(bundle), *arguments], request.timeout_s)
            if not report.is_file():
                raise DeviceError(f"{self.name}: the bundle's test ended without a report: {finished.last_words()}")
            return report.read_text(encoding="utf-8", errors="replace")

    def runtime(self, request: RunRequest) -> str:
        """Return the runtime that a request means.

        Raises:
            DeviceError: this device does not have it.
        """
        runtime = request.runtime or next(iter(self._emulation.runtimes))
        if runtime not in self._emulation.runtimes:
            raise DeviceError(f"{self.name} has no {runtime}, it has {', '.join(self._emulation.runtimes)}")
        return runtime

    def python(
        self,
        runtime: str,
        arguments: Sequence[str],
        timeout_s: float,
        *,
        writes_bytecode: bool = False,
        qemu_options: Sequence[str] = (),
    ) -> Finished:
        """Run the emulated Python with a runtime's folder on its path, and nothing of this process's environment."""
        root = self._emulation.folder
        program = str(root / "arm64/usr/bin" / f"python{self._emulation.python}")
        variables = {
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(root / "site" / runtime),
            **({} if writes_bytecode else {"PYTHONDONTWRITEBYTECODE": "1"}),
        }
        return self._emulated([*qemu_options, program, *arguments], timeout_s, variables)

    def _emulated(
        self, command: Sequence[str], timeout_s: float, variables: Mapping[str, str] | None = None
    ) -> Finished:
        """Run an aarch64 program, behind options of qemu, with nothing of this process's environment but its path."""
        environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", ""), **(variables or {})}
        called = [*self._emulation.qemu_command(self._key), *command]
        return run_limited(called, what=self.name, timeout_s=timeout_s, environment=environment)

    def _look(self, runtime: str) -> dict[str, Any]:
        finished = self.python(runtime, [str(_PROBE), tempfile.gettempdir()], _A_LOOK_S)
        try:
            return dict(json.loads(finished.stdout))
        except ValueError as error:
            raise DeviceError(f"{self.name} does not start: {finished.last_words()}") from error
