"""Files that are the old one or the new one."""

import os
from pathlib import Path

import pytest

from edgeopt.atomic import write_text
from edgeopt.errors import StorageError


def test_write_text_makes_folders_and_leaves_nothing_else_when_it_writes(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.json", "é\n")
    assert (tmp_path / "a" / "b.json").read_bytes() == "é\n".encode()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_write_text_keeps_the_old_file_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"cannot write .*a\.json: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_write_text_refuses_when_the_path_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Is a directory"):
        write_text(tmp_path, "new")


def test_write_text_keeps_the_link_when_the_path_is_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_write_text_writes_into_a_pipe_when_the_path_is_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
