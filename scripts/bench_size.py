"""How much there is to read: the lines of the lowering, and of its longest file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench_figures import Figure

LOWERING = Path(__file__).parents[1] / "edgeopt/tflite"


def lines_of(folder: Path) -> dict[str, int]:
    """Return the lines of every Python file below a folder, blank ones and docstrings too."""
    files = sorted(folder.rglob("*.py"))
    return {str(path.relative_to(folder)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}


def size_figures() -> Iterator[Figure]:
    """Count ``edgeopt/tflite``."""
    lines = lines_of(LOWERING)
    longest = max(lines, key=lines.__getitem__)
    remark = f"in {len(lines)} files, blank lines and docstrings too"
    yield Figure("size", "edgeopt/tflite", "all files", sum(lines.values()), "lines", remark)
    yield Figure("size", "edgeopt/tflite", "longest file", lines[longest], "lines", longest)
