"""How many guest instructions an inference takes on an emulated CPU: exact, and the same figure every time.

qemu runs a plugin of ours that counts between two marks, in one thread, for the second inference on inputs that are all
zero. The whole model is counted first, as it is. Then each operator is counted as a model of its own, less what a model
without operators takes. What is left of the whole is named too: ``rest``.

Instructions are not cycles: the figure shows that a model or a runtime became more or less work, not how fast it is.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgeopt.devices.cost import Instructions
from edgeopt.devices.qemu import QemuDevice
from edgeopt.devices.single_operators import single_operators
from edgeopt.errors import DeviceError, MissingDependencyError

_PLUGIN = Path(__file__).with_name("count_instructions.c")
_GUEST = Path(__file__).with_name("marked_inference.py")


def count_instructions(
    device: QemuDevice, model: Path, runtime: str, timeout_s: float, *, by_operator: bool = True
) -> Instructions:
    """Count the instructions of one inference on a board's CPU.

    Args:
        device: the emulated CPU.
        model: a .tflite file.
        runtime: ``ai-edge-litert`` or ``tflite-runtime``.
        timeout_s: how long it may take.
        by_operator: count each operator too.

    Raises:
        MissingDependencyError: there is no C compiler here to make the plugin with.
        DeviceError: the model does not run there, or not in time.
    """
    content = model.read_bytes()
    parts = list(single_operators(content)) if by_operator else []
    # The files' names have one length everywhere, as they become part of the memory whose layout can be felt.
    with tempfile.TemporaryDirectory(prefix="edgeopt.", dir="/tmp") as folder:
        files = [Path(folder) / f"{index:05}.tflite" for index in range(1 + len(parts))]
        for path, bytes_of in zip(files, [content, *(part.content for part in parts)], strict=True):
            path.write_bytes(bytes_of)
        total, *counts = count_each(device, files, runtime, timeout_s)
    operators: Counter[str] = Counter()
    for part, count in zip(parts[1:], counts[1:], strict=True):
        operators[part.builtin] += count - counts[0]
    return Instructions(total, dict(sorted(operators.items())), total - sum(operators.values()) if parts else None)


def count_each(device: QemuDevice, models: Sequence[Path], runtime: str, timeout_s: float) -> list[int]:
    """Return how many instructions an inference of each .tflite file takes; see :func:`count_instructions`.

    All files lie in one folder, which gets a file ``marks``, and their names have one length.
    """
    marks = models[0].with_name("marks")
    plugin = ["-plugin", f"{_built_plugin(device.folder, device.qemu)},marks={marks}"]
    arguments = [str(_GUEST), runtime.replace("-", "_"), *map(str, models)]
    finished = device.python(runtime, arguments, timeout_s, qemu_options=plugin)
    found = [int(line) for line in marks.read_text().split()] if marks.is_file() else []
    if finished.returncode != 0 or len(found) != 2 * (1 + len(models)):
        which = f"operator {len(found) // 2 - 3}" if len(found) >= 6 else "the model"
        raise DeviceError(f"{device.name}: cannot count the instructions of {which}: {finished.last_words()}")
    nothing, *counts = (end - start for start, end in zip(found[::2], found[1::2], strict=True))
    return [count - nothing for count in counts]


def _built_plugin(folder: Path, qemu: str) -> Path:
    """Return the plugin, which is compiled at its first use and kept beside the emulator."""
    # qemu 9 takes no plugin of version 1; what is used here is the same in both.
    command = [f"-DQEMU_PLUGIN_API={1 if int(qemu.split('.')[0]) < 9 else 2}", "-O2", "-shared", "-fPIC"]
    source = _PLUGIN.read_bytes()
    plugin = folder / f"count-{hashlib.sha256(' '.join(command).encode() + source).hexdigest()[:16]}.so"
    if plugin.is_file():
        return plugin
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise MissingDependencyError(
            "counting instructions needs a C compiler for qemu's plugin: there is no cc, gcc or clang on PATH",
            hint="apt install gcc",
        )
    with tempfile.TemporaryDirectory(prefix=".count.", dir=folder) as work:
        built = Path(work) / plugin.name
        made = subprocess.run(
            [compiler, *command, "-o", str(built), str(_PLUGIN)], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            raise MissingDependencyError(
                f"{compiler} cannot build the plugin that counts instructions: {' '.join(made.stderr.split())[-300:]}",
                hint="a C library's headers are needed too: apt install gcc libc6-dev",
            )
        built.replace(plugin)
    return plugin
