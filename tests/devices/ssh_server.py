"""OpenSSH's own server on loopback, from Debian's package, for a user of its own making."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """OpenSSH's server on loopback, with a user's key, a list of known hosts and a configuration of its own."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def url(self, **options: str) -> str:
        """Return the device's URL; bundles are put below `remote`."""
        settings = {"python": sys.executable, "config": str(self.folder / "ssh_config"), **options}
        query = "&".join(f"{key}={value}" for key, value in settings.items())
        return f"ssh://127.0.0.1:{self.port}{self.remote}?{query}"

    @property
    def remote(self) -> Path:
        """The folder on the device."""
        return self.folder / "remote"


@contextmanager
def running_server(sshd: Path, folder: Path, settings: str = "") -> Iterator[Server]:
    """Run the server out of the package that was unpacked in `sshd`; it serves this user, with keys alone.

    `settings` are lines of its configuration.
    """
    folder.mkdir()
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "ssh_config").write_text(
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nIdentityAgent none\n"
    )
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\n"
        "UsePAM no\nPasswordAuthentication no\nStrictModes no\nPidFile none\nPermitRootLogin yes\n" + settings
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(_command(sshd, folder), stderr=log)
    try:
        _wait_for(port, folder / "log", process)
        yield Server(folder, port, process)
    finally:
        process.kill()
        process.wait()


def _command(root: Path, folder: Path) -> list[str]:
    """Return how to start the server. As root it wants a user of its own, which it sees in its own mount namespace."""
    libraries = f"{root}/lib/{_triplet(root)}:{root}/usr/lib/{_triplet(root)}"
    loader = next(root.glob("lib*/ld-linux*.so.*"))
    command = [str(loader), "--library-path", libraries, f"{root}/usr/sbin/sshd", "-r", "-D", "-e"]
    command += ["-f", str(folder / "sshd_config")]
    if os.geteuid() != 0:
        return command
    users = folder / "passwd"
    users.write_text(Path("/etc/passwd").read_text() + "sshd:x:9999:65534::/run/sshd:/usr/sbin/nologin\n")
    script = f"mount --bind {shlex.quote(str(users))} /etc/passwd && mkdir -p /run/sshd && exec {shlex.join(command)}"
    return ["unshare", "--mount", "sh", "-c", script]


def _triplet(root: Path) -> str:
    return next(path.name for path in (root / "usr/lib").glob("*-linux-gnu"))


def _wait_for(port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"the ssh server does not listen: {log.read_text()}")
