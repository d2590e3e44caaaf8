"""A folder that takes another one's place."""

from pathlib import Path

import pytest

from edgeopt import atomic
from edgeopt.atomic import replace_folder


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("is_there", [True, False])
def test_replace_folder_leaves_only_the_new_one_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    if is_there:
        folder(tmp_path / "target", "old")
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "file").read_text() == "new"


def test_replace_folder_keeps_the_new_one_and_says_why_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    new = folder(tmp_path / "new", "new")
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left on device"):
        replace_folder(new, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
