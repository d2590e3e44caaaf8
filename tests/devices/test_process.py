"""Programs that hang, flood or die, run to their end or to ours."""

import os
import sys
import time
from pathlib import Path

import pytest

from edgeopt.devices.process import run_limited
from edgeopt.errors import DeviceError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_run_limited_returns_what_was_said_when_the_program_ends() -> None:
    done = run_limited(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), what="it", timeout_s=30
    )
    assert (done.returncode, done.stdout, done.last_words()) == (3, "out\n", "err")


def test_run_limited_refuses_when_the_program_floods_and_ends_at_once() -> None:
    with pytest.raises(DeviceError, match="it: more than 16,000,000 bytes of output"):
        run_limited(python("import os; os.write(1, bytes(20_000_000))"), what="it", timeout_s=30)


def test_run_limited_kills_the_program_and_what_it_started_when_the_time_is_over(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()
    with pytest.raises(DeviceError, match="it: no answer within 3 s"):
        run_limited(python(parent), what="it", timeout_s=3)
    assert time.monotonic() - began < 20
    pid = int(note.read_text())
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError("the program that it started still runs")
