"""Debian packages of any architecture, unpacked into a folder of ours: no root, and nothing of the host is touched.

apt runs with a state, a cache and a package status of its own, over the machine's own sources and keys. The empty
status makes it find every package that is needed, and it checks each file against the signed index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import DeviceError, EdgeoptError, MissingDependencyError, StorageError
from edgeopt.stage import report_progress

# 'URI' FILE SIZE HASH, as apt-get --print-uris writes it.
_URI = re.compile(r"^'[^']*' (?P<file>\S+) (?P<size>\d+)", re.MULTILINE)
_HOW_TO_REACH = re.compile(r"Acquire::(?:http|https|ftp|socks|Retries|ForceIPv[46])\b")
_STATUS = re.compile(r"^(?:dl|pm)status:[^:]*:(?P<percent>[\d.]+):", re.MULTILINE)

_NO_ROOM_BYTES = 1 << 20
_MAKE_ROOM = "free some space and call it again"


@dataclass(frozen=True)
class Download:
    """What apt fetches: names of files, and their bytes together."""

    files: tuple[str, ...]
    size_bytes: int


class PrivateApt:
    """apt over the machine's sources with everything that it writes below ``folder``.

    Raises:
        MissingDependencyError: this is no Debian or a system made from it.
    """

    def __init__(self, folder: Path, architectures: Sequence[str]) -> None:
        for program in ("apt-get", "apt-config", "dpkg-deb"):
            if shutil.which(program) is None:
                raise MissingDependencyError(
                    f"{program} is not on PATH, and the packages come from apt",
                    hint="Debian, Ubuntu and Raspberry Pi OS have it; elsewhere verify on a board: --device ssh://...",
                )
        self._folder = folder.absolute()
        self._archives = self._folder / "cache" / "archives"
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "apt.conf").write_text(self._configuration(architectures), encoding="utf-8")

    def update(self) -> None:
        """Fetch the lists of packages. What cannot be fetched shows itself when a package is missing.

        Raises:
            StorageError: the disk is full.
        """
        words = self._apt("update", "--quiet", what="fetch package lists").stderr
        if is_full(words):
            raise _refused("the lists of packages", words)

    def needed(self, packages: Sequence[str]) -> Download:
        """Return what :meth:`install` unpacks: the packages and all that they need.

        Raises:
            DeviceError: a package cannot be had; apt's own words are in the message.
        """
        # apt does not name what it has already, so it must not see what it has.
        (self._folder / "none" / "partial").mkdir(parents=True, exist_ok=True)
        nothing = f"Dir::Cache::archives={self._folder}/none"
        listed = [*_URI.finditer(self._install("--print-uris", "-o", nothing, *packages).stdout)]
        return Download(tuple(match["file"] for match in listed), sum(int(match["size"]) for match in listed))

    def install(self, packages: Sequence[str], root: Path) -> None:
        """Fetch packages and all that they need, and unpack them below ``root``; none of their scripts is run.

        Raises:
            DeviceError: a package cannot be had; apt's own words are in the message.
        """
        files = self.needed(packages).files
        self._install("--download-only", *packages, what=f"fetch {packages[0]}")
        for done, name in enumerate(files, start=1):
            _unpack(self._archives / name, root)
            report_progress(f"unpack {packages[0]}", done, len(files))

    def install_alone(self, package: str, root: Path) -> None:
        """Fetch one package without what it needs, and unpack it below ``root``; its script is not run.

        Raises:
            DeviceError: the package cannot be had; apt's own words are in the message.
        """
        file = next(name for name in self.needed([package]).files if name.startswith(f"{package.split(':')[0]}_"))
        result = self._apt("download", package, what=f"fetch {package}")
        if result.returncode != 0:
            raise _refused(package, result.stderr)
        _unpack(self._archives / file, root)

    def _install(self, *arguments: str, what: str = "") -> subprocess.CompletedProcess[str]:
        result = self._apt("install", "--yes", "--no-install-recommends", *arguments, what=what)
        if result.returncode != 0:
            raise _refused(arguments[-1], result.stderr)
        return result

    def _apt(self, *arguments: str, what: str) -> subprocess.CompletedProcess[str]:
        """Run apt-get; with ``what`` its progress is reported under this name."""
        environment = {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        if not what:
            return subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False)
        reader, writer = os.pipe()
        command = ["apt-get", "-o", f"APT::Status-Fd={writer}", *arguments]
        with (self._folder / "apt.log").open("w+") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                pass_fds=(writer,), cwd=self._archives,
            )  # fmt: skip
            os.close(writer)
            try:
                with os.fdopen(reader) as status:
                    for line in status:
                        if shutil.disk_usage(self._folder).free < _NO_ROOM_BYTES:  # apt would try for ever
                            raise StorageError(f"cannot {what}: the disk is full", hint=_MAKE_ROOM)
                        if match := _STATUS.match(line):
                            report_progress(what, int(float(match["percent"])), 100)
                returncode = process.wait()
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            return subprocess.CompletedProcess(command, returncode, "", log.read())

    def _configuration(self, architectures: Sequence[str]) -> str:
        """Return an apt.conf that reads how the machine reaches its sources, and nothing else of its settings.

        The machine's hooks must not run: some of them empty the machine's own cache.
        """
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
        reach = [line for line in dump.splitlines() if _HOW_TO_REACH.match(line)]
        native = re.search(r'^APT::Architecture "(.*)";$', dump, re.MULTILINE)
        wanted = dict.fromkeys([native[1] if native else "amd64", *architectures])
        return "\n".join(
            [
                *reach,
                'Acquire::Languages "none";',
                f'Dir::State "{self._folder}/state";',
                f'Dir::State::status "{self._folder}/status";',
                f'Dir::Cache "{self._folder}/cache";',
                'Dir::Etc::main "/dev/null";',
                'Dir::Etc::parts "/dev/null";',
                'APT::Sandbox::User "root";',  # its own user could not write into our folder
                "APT::Architectures {" + " ".join(f'"{name}";' for name in wanted) + "};",
                "",
            ]
        )


def program_in(root: Path, program: str) -> list[str]:
    """Return how to start a program that was unpacked below ``root``, with the libraries beside it."""
    loader = next(path for pattern in ("lib*/ld-linux*.so.*", "usr/lib*/ld-linux*.so.*") for path in root.glob(pattern))
    folders = [str(path) for pattern in ("lib/*-linux-gnu", "usr/lib/*-linux-gnu") for path in root.glob(pattern)]
    return [str(loader), "--library-path", ":".join(folders), str(root / program)]


def _unpack(package: Path, root: Path) -> None:
    """Unpack as ``dpkg-deb -x`` does, but keep the links that stand for folders, such as ``/lib``."""
    root.mkdir(parents=True, exist_ok=True)
    tar = ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", f"--directory={root}"]
    tar += [f"--exclude=./usr/share/{name}" for name in ("doc", "info", "locale", "man")]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as archive:
        result = subprocess.run(tar, stdin=archive.stdout, capture_output=True, text=True, check=False)
    if is_full(result.stderr):
        raise StorageError(f"cannot unpack {package.name}: the disk is full")
    if result.returncode != 0 or archive.returncode != 0:
        raise DeviceError(f"cannot unpack {package.name}: {result.stderr.strip() or 'dpkg-deb failed'}")


def is_full(words: str) -> bool:
    """Return whether a program's words say that the disk is full: the system's own, or apt's, which looks before."""
    return "No space left on device" in words or "enough free space" in words


def _refused(package: str, words: str) -> EdgeoptError:
    if is_full(words):
        return StorageError(f"cannot fetch {package}: {_errors_in(words)}", hint=_MAKE_ROOM)
    return DeviceError(
        f"apt cannot have {package}: {_errors_in(words)}",
        hint="do the machine's apt sources offer these architectures, and is the network there?",
    )


def _errors_in(text: str) -> str:
    lines = [line.removeprefix("E: ") for line in text.splitlines() if line.startswith("E:")]
    return "; ".join(lines) or text.strip()[-300:] or "no reason given"
