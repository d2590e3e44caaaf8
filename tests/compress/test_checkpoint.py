from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from edgeopt.compress.checkpoint import Checkpoint


def saved(folder: Path) -> Checkpoint:
    checkpoint = Checkpoint(folder, "print")
    checkpoint.save({"weights": torch.arange(3.0), "history": {"losses": [0.5]}})
    return checkpoint


def test_load_returns_what_was_saved_when_the_fingerprint_fits(tmp_path: Path) -> None:
    state = saved(tmp_path).load()

    assert state is not None
    assert state["weights"].tolist() == [0, 1, 2]
    assert state["history"] == {"losses": [0.5]}


def test_load_returns_none_when_there_is_no_file(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, "print").load() is None


def test_load_starts_over_when_the_training_is_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path)
    with caplog.at_level(logging.INFO, "edgeopt"):
        assert Checkpoint(tmp_path, "other").load() is None
    assert "other settings" in caplog.text


@pytest.mark.parametrize("keep", [0, 10, 65, 100, -1])
def test_load_starts_over_when_the_file_is_cut_short(
    tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = saved(tmp_path)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:keep])

    assert checkpoint.load() is None
    assert "damaged" in caplog.text


def test_load_starts_over_when_one_bit_is_flipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = saved(tmp_path)
    content = bytearray(checkpoint.path.read_bytes())
    content[-len(content) // 3] ^= 1
    checkpoint.path.write_bytes(content)

    assert checkpoint.load() is None
    assert "damaged" in caplog.text


def test_load_runs_no_code_when_the_file_is_a_pickle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "was run"),)

    buffer = io.BytesIO()
    torch.save({"fingerprint": "print", "state": Evil()}, buffer, pickle_module=pickle)
    payload = buffer.getvalue()
    checkpoint = Checkpoint(tmp_path, "print")
    checkpoint.path.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)

    assert checkpoint.load() is None
    assert "cannot be read" in caplog.text
    assert not (tmp_path / "was run").exists()


def test_save_leaves_the_old_file_when_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"weights": torch.zeros(3)})
    state = checkpoint.load()
    assert state is not None
    assert state["weights"].tolist() == [0, 1, 2]


def test_remove_leaves_nothing_when_a_half_written_file_is_there_too(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    (tmp_path / "checkpoint.pt.tmp").write_bytes(b"half")
    checkpoint.remove()

    assert list(tmp_path.iterdir()) == []
