"""Verifying over ssh, against OpenSSH's own server on loopback."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from ssh_server import Server

from edgeopt import verify
from edgeopt.devices.ssh import Address, SshDevice
from edgeopt.errors import DeviceError, UsageError


def stand_in(folder: Path, name: str, script: str) -> str:
    """Write a program that a device has in the place of its Python, and return its path."""
    path = folder / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def honest_but(folder: Path, name: str, script: str) -> str:
    """Return a Python that says what it is, as it should, and does something else when it is to run a bundle."""
    return stand_in(folder, name, f'if [ "$1" = - ]; then exec {sys.executable} "$@"; fi\n{script}')


def test_verify_passes_and_leaves_nothing_behind_when_a_board_is_reached(server: Server, bundle: Path) -> None:
    report = verify(bundle, device=server.url())
    assert report.passed, report.failures
    assert report.outputs == verify(bundle).outputs
    assert list(server.remote.iterdir()) == []


def test_verify_quotes_every_word_when_folder_and_python_have_spaces_and_quotes(server: Server, bundle: Path) -> None:
    strange = server.folder / "a 'b\" $(touch hacked); c"
    strange.mkdir()
    python = stand_in(strange, "python3", f'exec {sys.executable} "$@"')
    url = f"ssh://127.0.0.1:{server.port}{quote(str(strange / 'remote'))}?"
    report = verify(bundle, device=url + urlencode({"python": python, "config": server.folder / "ssh_config"}))
    assert report.passed
    assert list((strange / "remote").iterdir()) == []
    assert not list(server.folder.rglob("hacked"))
    assert not Path("hacked").exists()


def test_verify_refuses_when_the_host_is_not_known(server: Server, bundle: Path) -> None:
    (server.folder / "known_hosts").write_text("")
    with pytest.raises(DeviceError, match="Host key verification failed") as caught:
        verify(bundle, device=server.url())
    assert "fingerprint" in str(caught.value.hint)
    assert (server.folder / "known_hosts").read_text() == ""


def test_verify_refuses_when_the_host_key_has_changed(server: Server, bundle: Path) -> None:
    known = server.folder / "known_hosts"
    user_key = " ".join((server.folder / "user_key.pub").read_text().split()[:2])
    known.write_text(known.read_text().split()[0] + f" {user_key}\n")
    with pytest.raises(DeviceError, match="Host key verification failed"):
        verify(bundle, device=server.url())


def test_verify_never_asks_for_a_password_when_the_key_is_refused(server: Server, bundle: Path) -> None:
    (server.folder / "user_key.pub").write_text("")
    with pytest.raises(DeviceError, match="Permission denied") as caught:
        verify(bundle, device=server.url())
    assert "ssh-copy-id" in str(caught.value.hint)


def test_verify_says_so_when_nobody_listens(server: Server, bundle: Path) -> None:
    server.process.kill()
    server.process.wait()
    with pytest.raises(DeviceError, match="Connection refused"):
        verify(bundle, device=server.url())


def test_verify_refuses_before_anything_is_copied_when_the_board_has_no_python(server: Server, bundle: Path) -> None:
    with pytest.raises(DeviceError, match="cannot run this bundle: it has no Python"):
        verify(bundle, device=server.url(python="/nowhere/python3"), runner="python")
    assert not server.remote.exists()


def test_verify_refuses_before_anything_is_copied_when_the_runtime_is_missing(server: Server, bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"has no runtime for a \.tflite model: install tflite-runtime"):
        verify(bundle, device=server.url(), runtime="tflite-runtime")
    assert not server.remote.exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo not json > report.json", "answered no report"),
        ("echo '[]' > report.json", "answered no report"),
        ("""echo '{"passed": true, "failures": []}' > report.json""", "answered no report"),
        ("true", "ended without a report"),
        ("kill -9 $$", "ended without a report"),
        ("yes > report.json", "more than 16,000,000 bytes"),
    ],
)
def test_verify_gives_no_verdict_when_the_board_answers_garbage(
    server: Server, bundle: Path, script: str, message: str
) -> None:
    limit = "ulimit -f 40000\n" if script.startswith("yes") else ""
    python = honest_but(server.folder, "python", limit + script)
    with pytest.raises(DeviceError, match=message):
        verify(bundle, device=server.url(python=python), timeout_s=60)
    wait_until_empty(server.remote)


def test_verify_takes_no_pass_when_the_report_is_of_another_bundle(server: Server, bundle: Path) -> None:
    other = honest_but(
        server.folder, "python", f'{sys.executable} "$@"; sed -i "s/\\"digest\\": \\"./\\"digest\\": \\"x/" report.json'
    )
    with pytest.raises(DeviceError, match="it is of another bundle"):
        verify(bundle, device=server.url(python=other))


def test_verify_takes_no_pass_when_verdict_and_failures_disagree(server: Server, bundle: Path) -> None:
    liar = honest_but(
        server.folder,
        "python",
        f'{sys.executable} "$@"; sed -i "s/\\"failures\\": ../\\"failures\\": [1]/" report.json',
    )
    with pytest.raises(DeviceError, match="contradicts its failures"):
        verify(bundle, device=server.url(python=liar))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('"$@"; sed -i "s/\\"p50\\": [-0-9.e]*/\\"p50\\": 1e9/" report.json', "p50, p90 and p99 of 1000000000.0, "),
        ('"$@"; sed -i "s/\\"first\\": [-0-9.e]*/\\"first\\": NaN/" report.json', "NaN is no JSON"),
        ('"$1" "$2" "$3" "$4" "$5"', "did not measure inferences on 2 threads"),
        ('"$1" "$2" "$3" --threads 1 --latency 0.01', "did not measure inferences on 2 threads"),
    ],
)
def test_verify_takes_no_latency_that_cannot_be_or_was_not_asked_for(
    server: Server, bundle: Path, arguments: str, message: str
) -> None:
    python = honest_but(server.folder, "python", f"{sys.executable} {arguments}")
    with pytest.raises(DeviceError, match=message):
        verify(bundle, device=server.url(python=python), latency_s=0.01, threads=2)


def test_verify_ends_in_time_and_the_board_is_clean_when_the_test_hangs(server: Server, bundle: Path) -> None:
    python = honest_but(server.folder, "python", "sleep 600")
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"no answer within|ended without a report"):
        verify(bundle, device=server.url(python=python), timeout_s=2)
    assert time.monotonic() - began < 30
    wait_until_empty(server.remote)


def test_board_is_clean_when_the_connection_breaks_in_the_middle(server: Server, bundle: Path) -> None:
    python = honest_but(server.folder, "python", "touch started; sleep 5")
    thread_result: list[BaseException] = []

    def run() -> None:
        try:
            verify(bundle, device=server.url(python=python), timeout_s=60)
        except DeviceError as error:
            thread_result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: bool(list(server.remote.glob("*/started"))))
    cut_connections(server)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert isinstance(thread_result[0], DeviceError)
    wait_until_empty(server.remote)


def test_two_verifications_at_once_do_not_disturb_each_other(server: Server, bundle: Path) -> None:
    reports: list[bool] = []
    threads = [
        threading.Thread(target=lambda: reports.append(verify(bundle, device=server.url()).passed)) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports == [True, True]
    assert list(server.remote.iterdir()) == []


def test_bundle_is_refused_on_the_board_when_a_byte_was_flipped_on_the_way(server: Server, bundle: Path) -> None:
    flipped = honest_but(
        server.folder, "python",
        f"printf 'x' | dd of=model.tflite bs=1 seek=100 conv=notrunc 2>/dev/null; exec {sys.executable} \"$@\"",
    )  # fmt: skip
    with pytest.raises(DeviceError, match="is not the file that was built"):
        verify(bundle, device=server.url(python=flipped))


def test_info_says_what_the_board_is(server: Server) -> None:
    facts = SshDevice(server.url()).facts()
    assert facts.architecture == os.uname().machine
    assert facts.num_cpus >= 1
    assert "ai-edge-litert" in facts.runtimes
    assert not facts.is_emulated


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ssh://", "no host or user"),
        ("ssh://-oProxyCommand=x", "no host or user"),
        ("ssh://-l@host", "no host or user"),
        ("ssh://user:secret@host", "a password does not belong"),
        ("ssh://host:port", "is no device"),
        ("ssh://host/?shell=x", "unknown option 'shell'"),
        ("ssh://a b", "no host or user"),
    ],
)
def test_address_is_refused_when_it_is_none(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Address.parse(url)


def test_address_is_read_when_all_parts_are_there() -> None:
    address = Address.parse("ssh://pi@raspberrypi.local:2222/home/pi/a%20b?python=/opt/venv/bin/python3")
    assert address == Address("raspberrypi.local", "pi", 2222, "/home/pi/a b", "/opt/venv/bin/python3", None)


def wait_until_empty(folder: Path) -> None:
    wait_until(lambda: list(folder.iterdir()) == [])


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def cut_connections(server: Server) -> None:
    """Kill the server's process of each connection, as a cable that is pulled does it."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(server.process.pid)], capture_output=True, text=True, check=False
    )
    pids = [int(word) for word in listed.stdout.split()]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
