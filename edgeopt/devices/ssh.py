"""A Linux board over ssh: OpenSSH's own client, keys only, known hosts only, and nothing left behind.

One connection carries a bundle there as a tar stream and its report back; the shell on the board removes the folder
when it ends, also when the connection breaks. ``~/.ssh/config`` is honoured, so jump hosts and host aliases work.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from edgeopt.devices import shell_probe
from edgeopt.devices.device import DeviceFacts, Runner, RunRequest
from edgeopt.devices.process import Finished, run_limited
from edgeopt.errors import DeviceError, MissingDependencyError, UsageError

_CONNECT_S = 10
_A_LOOK_S = 60.0
_SSH_FAILED = 255
_NOT_FOUND = 127
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*")  # no word that ssh could take for an option
_PROBE = Path(__file__).with_name("probe.py")
_EXAMPLE = "ssh://user@host[:port][/folder][?python=/path/to/python3&config=ssh_config]"

# The board's side. BASE, TIME and COMMAND are quoted for its shell.
_RUN = """\
set -eu
umask 077
mkdir -p {base}
work=$(mktemp -d {base}/edgeopt.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP INT TERM
tar -xf - -C "$work"
cd "$work"
limit=
if command -v timeout >/dev/null; then limit="timeout {time}"; fi
code=0
$limit {command} >&2 </dev/null || code=$?
if [ -f report.json ]; then cat report.json; fi
exit $code
"""


@dataclass(frozen=True)
class Address:
    """What ``ssh://user@host:port/folder?python=...`` says; ``None`` leaves it to ssh's own configuration."""

    host: str
    user: str | None
    port: int | None
    folder: str
    python: str
    config: str | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a device's URL.

        Raises:
            UsageError: it is none, or holds a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        except ValueError as error:
            raise UsageError(f"{url!r} is no device: {error}", hint=_EXAMPLE) from error
        if parts.password is not None:
            raise UsageError("a password does not belong on a command line", hint="ssh-copy-id puts your key there")
        if unknown := set(options) - {"python", "config"}:
            raise UsageError(f"{url!r}: unknown option {min(unknown)!r}", hint=_EXAMPLE)
        host, user = parts.hostname or "", unquote(parts.username) if parts.username else None
        for word in (host, *([user] if user is not None else [])):
            if not _WORD.fullmatch(word):
                raise UsageError(f"{url!r}: {word!r} is no host or user", hint=_EXAMPLE)
        folder = unquote(parts.path) if parts.path not in ("", "/") else "/tmp"  # noqa: S108 - mktemp makes ours in it
        return cls(host, user, port, folder, options.get("python", "python3"), options.get("config"))


class SshDevice:
    """A board that OpenSSH's client reaches."""

    def __init__(self, url: str, name: str | None = None) -> None:
        self._address = Address.parse(url)
        self.name = name or url
        if shutil.which("ssh") is None:
            raise MissingDependencyError("ssh is not on PATH", hint="install OpenSSH's client")

    def facts(self) -> DeviceFacts:
        """Look at the board without leaving anything on it; a board without Python says little."""
        address = self._address
        with _PROBE.open("rb") as probe:
            finished = self._ssh(f"{shlex.quote(address.python)} - {shlex.quote(address.folder)}", _A_LOOK_S, probe)
        if finished.returncode == _NOT_FOUND:
            return self._without_python()
        try:
            told: dict[str, Any] = json.loads(finished.stdout)
            return DeviceFacts(**{**told, "features": tuple(told["features"]), "device": self.name})
        except (ValueError, TypeError, KeyError) as error:
            raise DeviceError(
                f"{self.name} does not say what it is: {finished.stdout[:200]!r}, {finished.last_words()}",
                hint="a shell that prints something at login stands in the way",
            ) from error

    def run(self, bundle: Path, request: RunRequest) -> str:
        """Send the bundle, run its test and return the report."""
        address = self._address
        script = _RUN.format(
            base=shlex.quote(address.folder),
            time=max(1, round(request.timeout_s)),
            command=shlex.join([*request.runner.command(address.python), *request.arguments("report.json")]),
        )
        with tempfile.TemporaryFile() as stream:
            _write_tar(bundle, request.runner, stream)
            stream.seek(0)
            finished = self._ssh(f"exec sh -c {shlex.quote(script)}", request.timeout_s + _CONNECT_S, stream)
        if not finished.stdout:
            raise DeviceError(f"{self.name}: the bundle's test ended without a report: {finished.last_words()}")
        return finished.stdout

    def _ssh(self, command: str, timeout_s: float, stdin: IO[bytes]) -> Finished:
        finished = run_limited(
            [*self._client(), command], what=self.name, timeout_s=timeout_s, stdin=stdin, environment=None
        )
        if finished.returncode == _SSH_FAILED:
            hint = None
            if "Host key verification failed" in finished.stderr:
                hint = f"connect once by hand and compare the key's fingerprint: ssh {self._address.host}"
            elif "Permission denied" in finished.stderr:
                hint = "only keys are used: ssh-copy-id puts yours there, ssh-add unlocks it"
            raise DeviceError(f"{self.name}: {finished.last_words()}", hint=hint)
        return finished

    def _client(self) -> Sequence[str]:
        address = self._address
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(_CONNECT_S),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
        }
        command = ["ssh", "-T", *(f"-o{key}={value}" for key, value in options.items())]
        command += ["-F", address.config] if address.config else []
        command += ["-p", str(address.port)] if address.port else []
        command += ["-l", address.user] if address.user else []
        return [*command, "--", address.host]

    def _without_python(self) -> DeviceFacts:
        """Ask the shell: a board that has no Python may run the C runner."""
        with tempfile.TemporaryFile() as nothing:
            finished = self._ssh(shell_probe.question(self._address.folder), _A_LOOK_S, nothing)
        try:
            return DeviceFacts(**shell_probe.understood(finished.stdout), device=self.name, is_emulated=False)
        except ValueError as error:
            raise DeviceError(f"{self.name} has no Python, and its shell answers {finished.stdout[:200]!r}") from error


def _write_tar(bundle: Path, runner: Runner, stream: IO[bytes]) -> None:
    """Write a bundle's files and what goes beside them as a tar archive without owners and times."""
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(bundle.rglob("*")):
            if path.is_file() and not path.is_symlink():
                _add(archive, path.relative_to(bundle).as_posix(), path, 0o600)
        for name, path in runner.files.items():
            _add(archive, name, path, 0o700)


def _add(archive: tarfile.TarFile, name: str, path: Path, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, mode
    with path.open("rb") as content:
        archive.addfile(entry, content)
