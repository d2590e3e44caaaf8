"""A Ray cluster of one node in processes of its own, as `ray start` makes it on a machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ray_cluster(folder: Path, *, num_cpus: int) -> Iterator[str]:
    """Start a head node with its dashboard on free ports, yield its address, and end what was started."""
    port, client, dashboard, agent = free_ports(4)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={num_cpus}",
        f"--port={port}", f"--ray-client-server-port={client}",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true",
        "--object-store-memory=80000000", "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "ray.log"
    with log.open("wb") as stream:
        head = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    try:
        wait_for(lambda: b"Ray runtime started" in log.read_bytes(), 120)
        yield f"127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until something holds, and fail if it takes too long."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
