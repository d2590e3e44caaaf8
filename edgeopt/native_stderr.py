"""What C and C++ code writes to the process's stderr, held back: Python's ``redirect_stderr`` does not see it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back_stderr() -> Iterator[list[bytes]]:
    """Hold back what is written to stderr; its lines are in the list when the block ends, however it ends."""
    held: list[bytes] = []
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield held
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            captured.seek(0)
            held.extend(captured)
