"""A C compiler for a device, and the C runner that it makes of a bundle's sources.

``edgeopt device setup compiler`` unpacks Debian's cross compiler for aarch64 below the user's cache, without root.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeopt.atomic import locked
from edgeopt.devices.construction import home_of, under_construction
from edgeopt.errors import BundleError, DeviceError, MissingDependencyError
from edgeopt.stage import logger, stage

PROGRAM = "run_parity"
_CROSS = "aarch64-linux-gnu-gcc"
_PACKAGES = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross")


@dataclass(frozen=True)
class Compiler:
    """A C compiler: how it is called, and what it needs in its environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def unpacked(cls, root: Path) -> Compiler:
        """Return the cross compiler that was unpacked below a folder."""
        libraries = sorted({str(path.parent) for path in root.glob("usr/lib/*-linux-gnu/**/lib*.so*")})
        command = (str(root / "usr/bin" / _CROSS), f"--sysroot={root}")
        return cls(command, {"LD_LIBRARY_PATH": os.pathsep.join(libraries)})

    def build_runner(self, bundle: Path, folder: Path) -> Path:
        """Make a bundle's ``runner/`` into a program in ``folder`` and return its path.

        Raises:
            BundleError: the bundle has no sources of it.
            MissingDependencyError: there is no ``make``.
            DeviceError: it does not compile; the compiler's own words are in the message.
        """
        if not (bundle / "runner" / "Makefile").is_file():
            raise BundleError(f"{bundle} has no C runner", hint="bundles for LiteRT have one: build it again")
        if shutil.which("make") is None:
            raise MissingDependencyError("make is not on PATH, and the C runner is built with it")
        sources = Path(shutil.copytree(bundle / "runner", folder / "source"))  # make takes no spaces in a path
        called = shlex.join(self.command).replace("$", "$$")
        done = subprocess.run(
            ["make", "--silent", f"CC={called}"],
            cwd=sources, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            last_words = " ".join(done.stderr.split())[-300:]
            raise DeviceError(f"{self.command[0]} does not build the C runner: {last_words}")
        return (sources / PROGRAM).replace(folder / PROGRAM)


def compiler_for(architecture: str, wanted: str | None = None) -> Compiler:
    """Return a compiler for a device: the one asked for, else the first that is on PATH, else the one that was set up.

    Raises:
        MissingDependencyError: there is none.
    """
    candidates = ["cc", "gcc", "clang"] if architecture == platform.machine() else [_CROSS]
    for command in [wanted] if wanted is not None else candidates:
        words = shlex.split(command)
        if words and shutil.which(words[0]) is not None:
            return Compiler(tuple(words))
    if wanted is not None:
        raise MissingDependencyError(f"there is no compiler {wanted!r}")
    if architecture == "aarch64" and is_set_up():
        return Compiler.unpacked(home_of("compiler"))
    setup = "edgeopt device setup compiler, or " if architecture == "aarch64" else ""
    raise MissingDependencyError(
        f"no C compiler for {architecture} is on PATH ({', '.join(candidates)})", hint=f"{setup}--cc COMMAND"
    )


def is_set_up() -> bool:
    """Return whether this user's cross compiler is there."""
    return (home_of("compiler") / "usr/bin" / _CROSS).exists()


def set_up(*, force: bool = False) -> Compiler:
    """Fetch and unpack a cross compiler for aarch64; one that is there is kept unless ``force`` says otherwise.

    Raises:
        MissingDependencyError: no apt here.
        DeviceError: a package cannot be had, or the compiler does not run.
    """
    home = home_of("compiler")
    home.parent.mkdir(parents=True, exist_ok=True)
    with stage("setup"), locked(home.with_name(f".{home.name}.lock")):
        if force or not is_set_up():
            with under_construction(home) as (new, apt):
                apt.update()
                needed = apt.needed(_PACKAGES)
                logger.info("fetching %d packages, %.0f MB", len(needed.files), needed.size_bytes / 1e6)
                apt.install(_PACKAGES, new)
        return Compiler.unpacked(home)
