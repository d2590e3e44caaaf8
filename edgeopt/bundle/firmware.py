"""The part of a bundle that a firmware build compiles: a C header, the model in read-only memory, golden vectors.

``firmware/`` has C sources and a Make fragment, ``cmake/`` a CMake package. The model is taken in by the assembler, so
that five megabytes need no twenty of C text, and a file of another size does not assemble. For a microcontroller, whose
compiler may be any, model and golden vectors are C arrays. ``edgeopt_decode.h`` reads what
:mod:`edgeopt.bundle.coding` writes, for firmware that keeps a coded model in flash.

``runner/`` is ``run_parity.py`` in C, for devices without Python. It travels as source, 90 kB or 25 in a packed bundle,
because who builds the firmware has the compiler for it, and because the bundle's hashes and signature then cover it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.bundle.golden import Golden
from edgeopt.bundle.manifest import Manifest

_TEMPLATES = Path(__file__).with_name("c")
_RUNNER = Path(__file__).with_name("runner")
_ALIGNMENT = 16
# Golden vectors travel in flash: as many whole samples as fit, and at least one.
_MOST_GOLDEN_BYTES = 256 * 1024
_MOST_GOLDEN_BYTES_OF_MICROCONTROLLER = 32 * 1024
_TYPES = {"bool": "BOOL", "int8": "INT8", "uint8": "UINT8", "int16": "INT16", "int32": "INT32", "int64": "INT64"}


def write_firmware(folder: Path, model: Manifest, golden: Golden) -> None:
    """Write ``firmware/`` and ``cmake/`` into a bundle that has its model file already.

    Args:
        folder: the bundle.
        model: what :func:`edgeopt.bundle.manifest.describe_model` returns.
        golden: the bundle's golden vectors.
    """
    firmware, cmake = folder / "firmware", folder / "cmake"
    firmware.mkdir()
    cmake.mkdir()
    for source in sorted(_TEMPLATES.glob("*.[ch]")):
        shutil.copyfile(source, firmware / source.name)
    samples = _golden_samples(model, golden)
    (firmware / "golden.bin").write_bytes(b"".join(samples))
    symbol = c_identifier(model["name"])
    words = _words(folder, model, golden, symbol, samples)
    for template, place in (
        ("model.h.in", firmware / f"{symbol}_model.h"),
        ("model.c.in", firmware / f"{symbol}_model.c"),
        ("model.mk.in", firmware / "model.mk"),
        ("edgeopt_model-config.cmake.in", cmake / "edgeopt_model-config.cmake"),
        ("CMakeLists.txt.in", cmake / "CMakeLists.txt"),
    ):
        place.write_text(_filled(template, words), encoding="utf-8")


def write_runner(folder: Path) -> None:
    """Write ``runner/`` into a bundle for LiteRT."""
    (folder / "runner").mkdir()
    for source in sorted(_RUNNER.iterdir()):
        shutil.copyfile(source, folder / "runner" / source.name)


def c_identifier(name: str) -> str:
    """Return a name as C, C++, Make and CMake all take it: ``efficientnet-lite0`` becomes ``efficientnet_lite0``."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
    return word if word and not word[0].isdigit() else f"model_{word}".rstrip("_")


def _filled(template: str, words: Mapping[str, str]) -> str:
    text = (_TEMPLATES / template).read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda found: words[found[1]], text)


def _words(folder: Path, model: Manifest, golden: Golden, symbol: str, samples: Sequence[bytes]) -> Mapping[str, str]:
    file = model["model"]["file"]
    content = (folder / file).read_bytes()
    sides = {"inputs": "input", "outputs": "quantized"}
    tensors = {
        side: [(facts, golden[f"{key}/{facts['name']}"].shape[1:]) for facts in model[side]]
        for side, key in sides.items()
    }
    macro = symbol.upper()
    words = {
        "NAME": model["name"],
        "TARGET": model["target"],
        "LITERAL": _c_string(model["name"]),
        "SYMBOL": symbol,
        "MACRO": macro,
        "FILE": file,
        "SIZE": str(len(content)),
        "GOLDEN_SIZE": str(sum(map(len, samples))),
        "NUM_GOLDEN": str(len(samples)),
        "NUM_INPUTS": str(len(model["inputs"])),
        "NUM_OUTPUTS": str(len(model["outputs"])),
        "MAX_STEPS": _c_float(model["limits"]["max_built_in_steps" if model["memory"] else "max_steps"]),
        "FACTS": "".join(_macros(macro, side[:-1].upper(), found) for side, found in tensors.items()),
        "LABELS": "".join(f"extern {declared};\n" for declared, _ in _label_arrays(symbol, model)),
        "LABEL_ARRAYS": "".join(f"{declared} = {{{names}}};\n" for declared, names in _label_arrays(symbol, model)),
        "TENSORS": "".join(_tables(symbol, side, found, model["labels"]) for side, found in tensors.items()),
    }
    if not model["memory"]:
        return {**words, "DATA": _filled("data_incbin.c.in", words)}
    words["FACTS"] += (
        f"/* RAM for the interpreter's tensors. */\n#define {macro}_ARENA_BYTES {model['memory']['ram_bytes']}\n"
    )
    arrays = {"MODEL_BYTES": _c_bytes(content), "GOLDEN_BYTES": _c_bytes(b"".join(samples))}
    return {**words, "DATA": _filled("data_array.c.in", {**words, **arrays})}


def _golden_samples(model: Manifest, golden: Golden) -> list[bytes]:
    """Return each sample as the firmware sees it: all inputs, then the answers of kernels like the device's, padded.

    These are the quantized reference's, or for a microcontroller those of TFLite's reference kernels.
    """
    has_built_in = all(f"built_in/{facts['name']}" in golden for facts in model["outputs"])
    expected = "built_in" if model["memory"] and has_built_in else "quantized"
    room = _MOST_GOLDEN_BYTES_OF_MICROCONTROLLER if model["memory"] else _MOST_GOLDEN_BYTES
    samples: list[bytes] = []
    for index in range(min(len(golden[f"{expected}/{facts['name']}"]) for facts in model["outputs"])):
        parts = [_as_stored(golden[f"input/{facts['name']}"][index], facts) for facts in model["inputs"]]
        parts += [_as_stored(golden[f"{expected}/{facts['name']}"][index], facts) for facts in model["outputs"]]
        sample = b"".join(part + bytes(-len(part) % _ALIGNMENT) for part in parts)
        if samples and sum(map(len, samples)) + len(sample) > room:
            break
        samples.append(sample)
    return samples


def _as_stored(values: np.ndarray[Any, Any], facts: Mapping[str, Any]) -> bytes:
    """Return one tensor's bytes, little-endian, as the model file takes or gives it."""
    if facts["dtype"] == "float32" and np.issubdtype(values.dtype, np.integer):
        values = (values.astype(np.float32) - np.float32(facts["zero_point"])) * np.float32(facts["scale"])
    return values.astype(np.dtype(facts["dtype"]).newbyteorder("<")).tobytes()


def _macros(macro: str, side: str, tensors: Sequence[tuple[Mapping[str, Any], tuple[int, ...]]]) -> str:
    """Return what a program may need when it is compiled: sizes, scales, zero-points."""
    lines = []
    for index, (facts, shape) in enumerate(tensors):
        name = f"{macro}_{side}_{index}"
        lines.append(f"/* {_comment(facts['name'])}: {facts['dtype']}, {facts['layout']}, {_sizes(shape)} */")
        lines.append(f"#define {name}_NUM_ELEMENTS {int(np.prod(shape, dtype=np.int64))}")
        if facts["scale"] is not None:
            lines.append(f"#define {name}_SCALE {_c_float(facts['scale'])}")
        if facts["zero_point"] is not None:
            lines.append(f"#define {name}_ZERO_POINT ({facts['zero_point']})")
    return "\n".join(lines) + "\n"


def _label_arrays(symbol: str, model: Manifest) -> Iterator[tuple[str, str]]:
    """Yield for each output with class names what declares their array, and the names."""
    for index, facts in enumerate(model["outputs"]):
        if names := model["labels"].get(facts["name"]):
            declared = f"const char *const {symbol}_outputs_labels_{index}[{len(names)}]"
            yield declared, ", ".join(map(_c_string, names))


def _tables(
    symbol: str,
    side: str,
    tensors: Sequence[tuple[Mapping[str, Any], tuple[int, ...]]],
    labels: Mapping[str, Sequence[str]],
) -> str:
    lines = [
        f"static const int32_t {symbol}_{side}_shape_{index}[] = {{{', '.join(map(str, (1, *shape)))}}};"
        for index, (_, shape) in enumerate(tensors)
    ]
    lines.append(f"static const EdgeoptTensor {symbol}_{side}[] = {{")
    for index, (facts, shape) in enumerate(tensors):
        kind = "EDGEOPT_" + _TYPES.get(facts["dtype"], "FLOAT32")
        scale = _c_float(facts["scale"] or 0.0)
        names = labels.get(facts["name"], ()) if side == "outputs" else ()
        labelled = f"{symbol}_outputs_labels_{index}, {len(names)}u" if names else "NULL, 0u"
        lines.append(
            f"    {{{_c_string(facts['name'])}, {kind}, {len(shape) + 1}u, {symbol}_{side}_shape_{index}, "
            f"{int(np.prod(shape, dtype=np.int64))}u, {scale}, {facts['zero_point'] or 0}, {labelled}}},"
        )
    return "\n".join([*lines, "};", ""])


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, (1, *shape)))


def _c_float(value: float) -> str:
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _c_string(text: str) -> str:
    """Return a C string literal; what is not printable ASCII becomes an octal escape, which ends after three digits."""
    safe = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{safe}"'


def _c_bytes(content: bytes) -> str:
    rows = (content[start : start + _ALIGNMENT] for start in range(0, len(content), _ALIGNMENT))
    return "\n".join("  " + " ".join(f"0x{byte:02x}," for byte in row) for row in rows)


def _comment(text: str) -> str:
    return text.replace("*/", "* /")
