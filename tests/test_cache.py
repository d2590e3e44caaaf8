"""Results on disk: found again, made again when damaged, made once by two processes, and never half there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_project import environment

from edgeopt.cache import Cache, CacheEntry, is_intact

KEY = ("settings", "code")


def writes(text: str = "result", name: str = "out.txt") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / name).write_text(text)
        (folder / "sub" / "more.txt").write_text("more")

    return make


def forbidden(_folder: Path) -> None:
    raise AssertionError("made although it was there")


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def entry(root: Path, make: Callable[[Path], None], key: tuple[str, ...] = KEY, **more: bool) -> CacheEntry:
    return Cache(root, more.pop("force", False)).entry("stage", key, make, **more)


def test_entry_is_made_once_when_the_key_is_the_same(tmp_path: Path) -> None:
    first = entry(tmp_path, writes())
    second = entry(tmp_path, forbidden)
    assert (first.hit, second.hit) == (False, True)
    assert first.folder == second.folder
    assert (second.folder / "out.txt").read_text() == "result"
    assert first.digest() == second.digest()


@pytest.mark.parametrize("key", [("settings", "other"), ("other", "code"), ("code", "settings"), ("settingscode",)])
def test_entry_is_another_when_any_part_of_the_key_is(tmp_path: Path, key: tuple[str, ...]) -> None:
    first = entry(tmp_path, writes())
    assert entry(tmp_path, writes(), key).folder != first.folder


def test_digest_changes_when_the_result_does(tmp_path: Path) -> None:
    digests = {entry(tmp_path / str(index), writes(*args)).digest()
               for index, args in enumerate([("a", "x"), ("b", "x"), ("a", "y")])}  # fmt: skip
    assert len(digests) == 3


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte is another": lambda folder: (folder / "out.txt").write_text("resulT"),
    "a file is gone": lambda folder: (folder / "sub" / "more.txt").unlink(),
    "a file is empty": lambda folder: (folder / "out.txt").write_text(""),
    "the list is gone": lambda folder: (folder / "entry.json").unlink(),
    "the list is cut off": lambda folder: (folder / "entry.json").write_text('{"files": {"out'),
    "the list is empty": lambda folder: (folder / "entry.json").write_text('{"files": {}}'),
    "the list is zeros": lambda folder: (folder / "entry.json").write_bytes(bytes(100)),
    "the list is another thing": lambda folder: (folder / "entry.json").write_text("[]"),
    "a folder is in a file's place": lambda folder: ((folder / "out.txt").unlink(), (folder / "out.txt").mkdir()),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_entry_is_made_again_when(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = entry(tmp_path, writes()).folder
    DAMAGE[case](folder)
    assert not is_intact(folder)
    again = entry(tmp_path, writes())
    assert not again.hit
    assert "is damaged and is built again" in caplog.text
    assert is_intact(folder)
    assert (folder / "out.txt").read_text() == "result"


def test_entry_is_made_again_when_a_file_stands_in_its_place(tmp_path: Path) -> None:
    folder = entry(tmp_path, writes()).folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    folder.write_text("not a folder")
    assert not entry(tmp_path, writes()).hit
    assert is_intact(folder)


def test_entry_is_made_again_when_forced(tmp_path: Path) -> None:
    entry(tmp_path, writes("old"))
    again = entry(tmp_path, writes("new"), force=True)
    assert not again.hit
    assert (again.folder / "out.txt").read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_entry_leaves_nothing_when_making_it_fails(tmp_path: Path, error: BaseException) -> None:
    def fails(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise error

    with pytest.raises(type(error)):
        entry(tmp_path, fails)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    assert not entry(tmp_path, writes()).hit


def test_entry_keeps_the_old_one_when_forcing_it_fails(tmp_path: Path) -> None:
    def fails(_folder: Path) -> None:
        raise OSError(28, "No space left on device")

    entry(tmp_path, writes("old"))
    with pytest.raises(OSError, match="No space"):
        entry(tmp_path, fails, force=True)
    assert (entry(tmp_path, forbidden).folder / "out.txt").read_text() == "old"


def test_entry_goes_on_from_what_is_there_when_it_is_resumable(tmp_path: Path) -> None:
    def stops(folder: Path) -> None:
        (folder / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    def goes_on(folder: Path) -> None:
        assert (folder / "checkpoint").read_text() == "half way"
        (folder / "checkpoint").unlink()
        (folder / "out.txt").write_text("result")

    with pytest.raises(KeyboardInterrupt):
        entry(tmp_path, stops, resumable=True)
    assert visible(tmp_path) == []
    found = entry(tmp_path, goes_on, resumable=True)
    assert sorted(path.name for path in found.folder.iterdir()) == ["entry.json", "out.txt"]


# ---------------------------------------------------------------- real processes

SLOW = """
import os, sys, time
from pathlib import Path
from edgeopt.cache import Cache

root = Path(sys.argv[1])

def make(folder):
    with open(root / "made", "a") as stream:
        stream.write(f"{os.getpid()}\\n")
    (folder / "one.txt").write_text("one")
    time.sleep(float(sys.argv[2]))
    (folder / "two.txt").write_text("two")

print(Cache(root / "cache").entry("stage", ["key"], make).hit)
"""


def started(root: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(root), str(seconds)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)


def made(root: Path) -> list[str]:
    return (root / "made").read_text().split() if (root / "made").exists() else []


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_entry_is_made_once_when_two_processes_want_it_at_once(tmp_path: Path) -> None:
    processes = [started(tmp_path, 1.0), started(tmp_path, 1.0)]
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert answers == ["False", "True"]
    assert len(made(tmp_path)) == 1


def test_entry_looks_finished_never_when_its_process_is_killed(tmp_path: Path) -> None:
    process = started(tmp_path, 60)
    wait_until(lambda: made(tmp_path) and list((tmp_path / "cache").glob(".stage-*.work/one.txt")))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert visible(tmp_path / "cache") == []
    done = started(tmp_path, 0)  # the lock went with the process
    assert done.communicate(timeout=60)[0].strip() == "False"
    (name,) = visible(tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache" / name).iterdir()) == ["entry.json", "one.txt", "two.txt"]
    assert is_intact(tmp_path / "cache" / name)
