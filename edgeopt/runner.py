"""Runs stages: each result is found in the cache or made there, and what happened is recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeopt.artifacts import canonical_json
from edgeopt.bundle.manifest import tool_versions
from edgeopt.cache import Cache, CacheEntry
from edgeopt.provenance import fingerprint, python_files
from edgeopt.stage import inner_stages, stage

PACKAGE = Path(__file__).parent

# What a stage's result depends on besides its inputs, settings and code: the packages that it calls.
TORCH = ("torch", "torch-pruning", "lightning-fabric", "safetensors", "numpy")
ONNX = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
RUNTIMES = ("onnxruntime", "ai-edge-litert", "numpy")


@dataclass(frozen=True)
class StageRecord:
    """What one stage did: whether its result was cached, how long it took, and one line for people."""

    name: str
    cached: bool
    seconds: float
    summary: str


class StageRunner:
    """Runs the stages of one build against one cache."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.records: list[StageRecord] = []

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Run stages inside the block as a part of the one around them, which reports what came of them all."""
        before = len(self.records)
        with inner_stages():
            yield
        del self.records[before:]

    def run(
        self,
        name: str,
        code: str | Path,
        packages: Sequence[str],
        key: Sequence[str],
        make: Callable[[Path], str],
        *,
        resumable: bool = False,
    ) -> CacheEntry:
        """Make or find the result of one stage.

        Args:
            name: of the stage.
            code: the Python file whose imports, followed within edgeopt, are the stage's code.
            packages: what the stage calls; their versions count.
            key: hashes of inputs, and settings.
            make: writes the result's files into a folder and returns one line about them for people.
            resumable: see :meth:`edgeopt.cache.Cache.entry`.
        """
        full_key = [name, *tool_versions(packages), *code_key(PACKAGE / code), *key]

        def make_with_summary(folder: Path) -> None:
            (folder / "summary.txt").write_text(make(folder), encoding="utf-8")

        start = time.monotonic()
        with stage(name):
            entry = self.cache.entry(name, full_key, make_with_summary, resumable=resumable)
        summary = (entry.folder / "summary.txt").read_text(encoding="utf-8")
        self.records.append(StageRecord(name, entry.hit, time.monotonic() - start, summary))
        return entry


def code_key(start: Path) -> tuple[str, ...]:
    """Return the hashes of a file and of everything in edgeopt that it imports."""
    return fingerprint(python_files(start, PACKAGE.parent))


def settings_key(value: Any) -> str:
    """Return settings as text: paths by name, so that the folder of a checkout does not matter."""
    return json.dumps(
        asdict(value), sort_keys=True, default=lambda item: item.name if isinstance(item, Path) else dict(item)
    )


def entry_digest(entry: CacheEntry | None) -> str:
    """Return the hash of a result, or nothing for a stage that the recipe leaves out."""
    return "" if entry is None else entry.digest()


def save_report(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what a stage reports beside its files."""
    (folder / "report.json").write_text(canonical_json(content), encoding="utf-8")


def read_report(entry: CacheEntry) -> dict[str, Any]:
    """Read what a stage reported."""
    content: dict[str, Any] = json.loads((entry.folder / "report.json").read_text(encoding="utf-8"))
    return content
