"""Dependency files, read by the real programs: Make and Ninja must see exactly the paths that were written."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edgeopt.depfile import depfile
from edgeopt.errors import UsageError

HARD_NAMES = ["plain.toml", "with space.toml", "two  spaces.py", "hash#tag.py", "cash$HOME.py", "col:on.py", "a\\ b.py"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def touch(path: Path, *, age: float = 0) -> None:
    path.touch()
    stamp = time.time() - age
    os.utime(path, (stamp, stamp))


def test_depfile_writes_paths_below_the_working_directory_relative_when_given_absolute(tmp_path: Path) -> None:
    text = depfile([tmp_path / "out" / "b.json"], [tmp_path / "my.toml", Path("/usr/lib/x.py"), Path("my.toml")])
    assert text == "out/b.json: \\\n  /usr/lib/x.py \\\n  my.toml\n\n/usr/lib/x.py:\n\nmy.toml:\n"


def test_depfile_is_a_rule_without_inputs_when_there_are_none() -> None:
    assert depfile([Path("a"), Path("b")], []) == "a b:\n"


def test_depfile_refuses_when_a_path_has_a_line_break() -> None:
    with pytest.raises(UsageError, match="line break"):
        depfile([Path("out")], [Path("a\nb")])


@pytest.mark.parametrize("name", HARD_NAMES)
def test_make_rebuilds_when_an_input_with_a_hard_name_changed(name: str) -> None:
    need("make")
    touch(Path(name), age=100)
    Path("out.d").write_text(depfile([Path("out.json")], [Path(name)]))
    Path("Makefile").write_text("all: out.json\nout.json:\n\t@echo rebuilt\n\t@touch out.json\n-include out.d\n")
    assert run("make") == "rebuilt\n"
    assert "rebuilt" not in run("make")
    touch(Path(name), age=-5)
    assert run("make") == "rebuilt\n"


def test_make_goes_on_when_an_input_was_deleted() -> None:
    need("make")
    Path("out.d").write_text(depfile([Path("out.json")], [Path("gone.py")]))
    Path("Makefile").write_text("out.json:\n\t@echo rebuilt\n-include out.d\n")
    assert run("make") == "rebuilt\n"


@pytest.mark.parametrize("name", ["out put.json", "out#put.json", "out$put.json"])
def test_make_knows_the_output_when_it_has_a_hard_name(name: str) -> None:
    need("make")
    touch(Path("in.toml"), age=100)
    Path("out.d").write_text(depfile([Path(name)], [Path("in.toml")]))
    in_make = name.replace(" ", r"\ ").replace("#", r"\#").replace("$", "$$")
    Path("Makefile").write_text(f"{in_make}:\n\t@echo rebuilt\n\t@touch '{name.replace('$', '$$')}'\n-include out.d\n")
    assert run("make") == "rebuilt\n"
    touch(Path("in.toml"), age=-5)
    assert run("make") == "rebuilt\n"


@pytest.mark.parametrize("name", HARD_NAMES)
def test_ninja_rebuilds_when_an_input_with_a_hard_name_changed(name: str) -> None:
    need("ninja")
    touch(Path(name), age=100)
    Path("prepared.d").write_text(depfile([Path("out.json")], [Path(name)]))
    Path("build.ninja").write_text(
        "rule edgeopt\n  command = cp prepared.d out.d && touch out.json && echo rebuilt\n"
        "  depfile = out.d\n  deps = gcc\nbuild out.json: edgeopt\n"
    )
    assert "rebuilt" in run("ninja")
    assert "no work to do" in run("ninja")
    touch(Path(name), age=-5)
    assert "rebuilt" in run("ninja")


def run(program: str) -> str:
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
