"""Phones and Android boards: the ``adb`` client pushes a bundle, runs it under ``/data/local/tmp``, pulls its report.

A device without Python gets the C runner. For Android's C library no LiteRT is installed here, so that ``runner`` names
a folder with ``run_parity``, made from the bundle's ``runner/`` by Android's compiler, and ``libLiteRt.so``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

from edgeopt.devices import shell_probe
from edgeopt.devices.device import C, DeviceFacts, Runner, RunRequest
from edgeopt.devices.process import Finished, run_limited
from edgeopt.errors import DeviceError, MissingDependencyError, UsageError, did_you_mean
from edgeopt.stage import logger

_EXAMPLE = "adb[:serial][?runner=folder-with-run_parity-and-libLiteRt.so or ?python=python3]"
_FOLDER = "/data/local/tmp"
_A_LOOK_S = 60.0
_NO_ANSWER_S = 30.0  # on top of what the bundle's test may take
_MOST_BYTES = 16_000_000  # what is longer is no report
_PROBE = Path(__file__).with_name("probe.py")
_EXIT_CODE = re.compile(r"\nedgeopt exit (\d+)\s*\Z")
_HINTS = {
    "unauthorized": "unlock its screen and allow USB debugging for this computer",
    "offline": "connect it again, or: adb reconnect offline",
    "no permissions": "the system keeps its USB port from you: see adb's udev rules",
}

# The device's side, a process group of its own. Its standard input ends when the connection breaks or this process
# does; then the folder is removed, and the group is killed. At the end the others of the group are ended, what watches
# and what the test left: adb waits for all that have its connection.
_RUN = """\
exec 3<&0
(read -r nothing <&3; rm -rf {work}; kill -KILL 0) >/dev/null 2>&1 &
limit=
if command -v timeout >/dev/null; then limit="timeout {time}"; fi
cd {work} && $limit {command} </dev/null 3<&-
code=$?
trap : TERM
kill -TERM 0
exit $code
"""

# Of Android, its release, the model, and whether it is an emulator; of other machines, qemu's own name.
_ANDROID = """\
for name in ro.build.version.release ro.product.model ro.boot.qemu; do getprop $name 2>/dev/null || echo; done
tr '\\0' ' ' 2>/dev/null </proc/device-tree/compatible
"""


@dataclass(frozen=True)
class AdbAddress:
    """What ``adb:serial?runner=...`` says; without a serial it is the only device that is connected."""

    serial: str | None
    runner: Path | None
    python: str

    @classmethod
    def parse(cls, name: str) -> AdbAddress:
        """Read a device's name.

        Raises:
            UsageError: it is none, or ``runner`` is no folder with the runner's two files.
        """
        serial, _, query = name.removeprefix("adb").removeprefix(":").partition("?")
        try:
            options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        except ValueError as error:
            raise UsageError(f"{name!r} is no device: {error}", hint=_EXAMPLE) from error
        if unknown := set(options) - {"runner", "python"}:
            raise UsageError(f"{name!r}: unknown option {min(unknown)!r}", hint=_EXAMPLE)
        runner = Path(options["runner"]) if "runner" in options else None
        address = cls(serial or os.environ.get("ANDROID_SERIAL"), runner, options.get("python", "python3"))
        for file in address.runner_files().values():
            if not file.is_file():
                raise UsageError(f"{runner} has no {file.name}", hint="make -f BUNDLE/runner/Makefile makes run_parity")
        return address

    def runner_files(self) -> dict[str, Path]:
        """Return the files that travel beside the bundle."""
        return {name: self.runner / name for name in ("run_parity", "libLiteRt.so")} if self.runner else {}


class AdbDevice:
    """A device that the ``adb`` client reaches."""

    def __init__(self, name: str) -> None:
        self._address = AdbAddress.parse(name)
        self._client = _client()
        self.name = name.partition("?")[0]

    def facts(self) -> DeviceFacts:
        """Look at the device without leaving anything on it."""
        self._choose()
        answer = self._shell(shell_probe.question(_FOLDER), _A_LOOK_S).stdout
        try:
            told = shell_probe.understood(answer)
        except ValueError as error:
            raise DeviceError(f"{self.name} does not say what it is: {answer[:200]!r}") from error
        release, model, emulator, machine = (self._shell(_ANDROID, _A_LOOK_S).stdout + "\n" * 4).split("\n")[:4]
        told["cpu"] = ", ".join(filter(None, (told["cpu"], model)))
        told["libc"] = f"Android {release}'s" if release else told["libc"]
        facts = DeviceFacts(**told, device=self.name, is_emulated=emulator == "1" or "dummy-virt" in machine)
        if self._address.runner:
            return replace(facts, runner=str(self._address.runner))
        return replace(facts, **self._python_facts())

    def run(self, bundle: Path, request: RunRequest) -> str:
        """Push the bundle, run its test and pull the report."""
        self._choose()
        address = self._address
        if address.runner:
            request = replace(request, runner=Runner(C, address.runner_files()))
        command = [*request.runner.command(address.python), *request.arguments("report.json")]
        with self._work_folder() as work, tempfile.TemporaryDirectory(prefix="edgeopt.") as here:
            self._push(f"{bundle}/.", f"{work}/")
            for name, path in request.runner.files.items():
                self._push(str(path.resolve()), f"{work}/{name}")
            script = _RUN.format(work=work, time=max(1, round(request.timeout_s)), command=shlex.join(command))
            with _open_end() as stdin:
                finished = self._shell(script, request.timeout_s + _NO_ANSWER_S, stdin)
            report = Path(here) / "report.json"
            pulled = self._adb(["pull", f"{work}/report.json", str(report)], _A_LOOK_S)
            if pulled.returncode != 0 or not report.is_file():
                words = " ".join((finished.stderr + finished.stdout).split())[-300:] or "it said nothing"
                raise DeviceError(f"{self.name}: the bundle's test ended without a report: {words}")
            return report.read_bytes()[:_MOST_BYTES].decode("utf-8", errors="replace")

    @contextmanager
    def _work_folder(self) -> Iterator[str]:
        """Yield a new folder on the device, and remove it."""
        work = f"{_FOLDER}/edgeopt-{secrets.token_hex(8)}"
        made = self._shell(f"umask 077 && mkdir {work}", _A_LOOK_S)
        if made.returncode != 0:
            raise DeviceError(f"{self.name}: cannot make {work}: {made.stdout.strip()} {made.last_words()}")
        try:
            yield work
        finally:
            try:
                self._shell(f"rm -rf {work}", _A_LOOK_S)
            except DeviceError as error:  # what went wrong before is worth more
                logger.warning("%s is left on the device: %s", work, error)

    def _push(self, source: str, target: str) -> None:
        pushed = self._adb(["push", source, target], _NO_ANSWER_S + _A_LOOK_S)
        if pushed.returncode != 0:
            words = " ".join((pushed.stdout + pushed.stderr).split())[-300:]
            raise DeviceError(f"{self.name}: cannot push {Path(source).name or source}: {words}")

    def _python_facts(self) -> dict[str, Any]:
        """Ask the device's Python, if it has one, what it brings."""
        script = f"{shlex.quote(self._address.python)} -c {shlex.quote(_PROBE.read_text())} {_FOLDER}"
        try:
            told = json.loads(self._shell(script, _A_LOOK_S).stdout)
            return {key: told[key] for key in ("python", "runtimes", "libc")}
        except (ValueError, KeyError, TypeError):
            return {}

    def _shell(self, script: str, timeout_s: float, stdin: IO[bytes] | None = None) -> Finished:
        """Run a script on the device; old devices do not tell how it ended, so that it says so itself."""
        telling = f"trap : TERM\n(\n{script}\n)\ncode=$?; echo; echo edgeopt exit $code"
        finished = self._adb(["shell", telling], timeout_s, stdin)
        said = _EXIT_CODE.search(finished.stdout)
        if said is None:
            raise DeviceError(f"{self.name}: the connection broke: {finished.last_words()}")
        return Finished(int(said[1]), finished.stdout[: said.start()], finished.stderr)

    def _choose(self) -> None:
        """Set the serial if none was given, and see that the device is there and lets us in."""
        states = self._connected()
        serial = self._address.serial
        if serial is None:
            if len(states) > 1:
                raise UsageError(
                    f"several devices are connected: {', '.join(states)}", hint=f"--device adb:{next(iter(states))}"
                )
            if not states:
                raise DeviceError("adb sees no device", hint="connect it, and switch on USB debugging in its settings")
            serial = next(iter(states))
            self._address = replace(self._address, serial=serial)
        if serial not in states:
            raise DeviceError(f"adb sees no device {serial!r}", hint=did_you_mean(serial, list(states)))
        state = states[serial]
        if state != "device":
            hint = next((hint for key, hint in _HINTS.items() if state.startswith(key)), None)
            raise DeviceError(f"adb:{serial} is {state}", hint=hint)

    def _connected(self) -> dict[str, str]:
        """Return the state of each device that the client lists."""
        listed = run_limited([self._client, "devices"], what="adb devices", timeout_s=_A_LOOK_S)
        if listed.returncode != 0:
            raise DeviceError(f"adb devices: {listed.last_words()}")
        lines = (line.split("\t", 1) for line in listed.stdout.splitlines() if "\t" in line)
        return {serial: state.strip() for serial, state in lines}

    def _adb(self, arguments: Sequence[str], timeout_s: float, stdin: IO[bytes] | None = None) -> Finished:
        command = [self._client, "-s", str(self._address.serial), *arguments]
        return run_limited(command, what=self.name, timeout_s=timeout_s, stdin=stdin)


@contextmanager
def _open_end() -> Iterator[IO[bytes]]:
    """Yield a standard input that says nothing, and ends when the block or this process does."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin, os.fdopen(writer, "wb"):
        yield stdin


def _client() -> str:
    found = os.environ.get("ADB") or shutil.which("adb")
    if found is None or shutil.which(found) is None:
        raise MissingDependencyError(
            f"there is no adb{f' at {found}' if found else ' on PATH'}",
            hint="install Android's platform tools (Debian: apt install adb), or name the client in $ADB",
        )
    return found
