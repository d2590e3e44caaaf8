"""Whether a device can run a bundle, by what the device says of itself: asked before anything is copied to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeopt.devices.device import C, DeviceFacts, RunRequest, unfit
from edgeopt.devices.runner import missing_libraries
from edgeopt.parity import TFLITE_RUNTIMES

# These count as TensorFlow Lite does; ai-edge-litert went on where that had ended, at 2.17.
_COUNT_AS_TFLITE = ("tflite-runtime", "tensorflow")


def reasons_against(
    bundle: Path, manifest: Mapping[str, Any], facts: DeviceFacts, request: RunRequest
) -> Iterator[str]:
    """Yield every reason why a device cannot run a bundle by the request's runner."""
    yield from unfit(facts, manifest, request)
    if request.runner.name == C:
        yield from missing_libraries(request.runner, facts)
    elif manifest["model"]["format"] == "tflite":
        yield from _too_old(bundle / manifest["model"]["file"], facts, request)


def _too_old(model: Path, facts: DeviceFacts, request: RunRequest) -> Iterator[str]:
    """Yield the operators that are younger than the runtime that would be taken."""
    wanted = (request.runtime,) if request.runtime else TFLITE_RUNTIMES
    runtime = next((name for name in wanted if name in facts.runtimes), "")
    if runtime not in _COUNT_AS_TFLITE:
        return
    release = re.match(r"\d+(\.\d+)+", facts.runtimes[runtime])
    if release is None:
        return
    from edgeopt.tflite.inspect import read_tflite
    from edgeopt.tflite.versions import minimum_runtime_version

    operators = dict.fromkeys((op.builtin, op.version) for op in read_tflite(model.read_bytes()).operators)
    needed = {operator: minimum_runtime_version([operator]) for operator in operators}
    too_new = {operator: first for operator, first in needed.items() if _number(first) > _number(release[0])}
    if too_new:
        named = ", ".join(f"{builtin} version {version}" for builtin, version in too_new)
        first = max(too_new.values(), key=_number)
        yield f"its {runtime} {facts.runtimes[runtime]} is older than {first}, the first release with {named}"


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))
