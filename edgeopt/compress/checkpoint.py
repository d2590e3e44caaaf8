"""Training checkpoints: one file, written whole or not at all, that goes on from the last epoch bit for bit.

The file is the SHA-256 of the rest in hexadecimal, a newline, and what ``torch.save`` writes. It is read with
``weights_only=True``, which makes tensors and plain values and runs no code.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeopt.stage import logger

_NAME = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one training; ``fingerprint`` stands for everything that decides how it goes."""

    folder: Path
    fingerprint: str

    @property
    def path(self) -> Path:
        """Return where the file is."""
        return self.folder / _NAME

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file by ``state``: tensors and plain values in dicts and lists."""
        buffer = io.BytesIO()
        torch.save({"fingerprint": self.fingerprint, "state": state}, buffer)
        payload = buffer.getvalue()
        temporary = self.path.with_name(_NAME + ".tmp")
        with temporary.open("wb") as stream:
            stream.write(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
            stream.flush()
            os.fsync(stream.fileno())  # a power cut must not leave the new name with nothing behind it
        os.replace(temporary, self.path)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or ``None`` with a log line if the file is damaged or from another training."""
        if not self.path.exists():
            return None
        digest, _, payload = self.path.read_bytes().partition(b"\n")
        if digest.decode("ascii", "replace") != hashlib.sha256(payload).hexdigest():
            logger.warning("%s is damaged: training starts over", _NAME)
            return None
        try:
            content = torch.load(io.BytesIO(payload), weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("%s cannot be read (%s): training starts over", _NAME, error)
            return None
        if not isinstance(content, dict) or content.get("fingerprint") != self.fingerprint:
            logger.info("%s is from a training with other settings, data or weights: training starts over", _NAME)
            return None
        state: dict[str, Any] = content["state"]
        return state

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(_NAME + ".tmp").unlink(missing_ok=True)
