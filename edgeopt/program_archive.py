"""Looks through a ``.pt2`` archive before torch opens it, because ``torch.export.load`` runs what it finds there.

Source: torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py of torch 2.13. Code can stand in

1. a weight, constant or sample input that is stored as a pickle, marked as one or named like one (``opaque_obj_0``);
2. the older format of the same archive (``serialized_state_dict.pt``), which torch falls back to;
3. ``data/aotinductor``: a shared library;
4. a shape expression, which sympy evaluates as Python;
5. the name of a function to call: ``torch.os.system`` is one.

So everything is refused that is not on a list of what plain programs consist of, and torch is given a new archive of
only what was looked at: its own reader of ZIP files might see others in a crafted one.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgeopt.errors import ModelError

_MODEL, _SAMPLE_INPUTS = "models/model.json", "data/sample_inputs/model.pt"
_WEIGHTS, _CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_NEEDED = (_MODEL, _SAMPLE_INPUTS, _WEIGHTS, _CONSTANTS)
_PLAIN = re.compile(r"archive_format|archive_version|byteorder|version|\.\w+|\.data/\w+")
_TENSOR = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+")
_EXTRA = "extra/"  # what the user put there; it is left out

_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|torchvision)\.\w+(\.\w+)?"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pow|sub|truediv)"
    r"|math\.\w+|torch\.sym_\w+"
)
_SYMBOL = re.compile(r"[A-Za-z]+\d+")
_FUNCTIONS = (
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq", "Ne", "Lt",
    "Le", "Gt", "Ge", "floor", "ceiling", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv",
    "CeilToInt", "FloorToInt", "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "LShift", "RShift", "TruncToFloat",
    "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "FloatPow", "PowByNatural", "Identity",
)  # fmt: skip
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context,
    ast.keyword,
)  # fmt: skip


def plain_archive(path: Path) -> io.BytesIO:
    """Return the archive again, of checked entries only.

    Raises:
        ModelError: naming what in it could run code.
    """
    entries = _read(path)
    for config in (_WEIGHTS, _CONSTANTS):
        _refuse_pickles(path, json.loads(entries[config]))
    _refuse_code(path, entries[_SAMPLE_INPUTS])
    _refuse_calls(path, json.loads(entries[_MODEL]))
    return _written(entries)


def _read(path: Path) -> dict[str, bytes]:
    entries: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        roots = {entry.filename.partition("/")[0] for entry in archive.infolist()}
        names = [entry.filename.partition("/")[2] for entry in archive.infolist()]
        if not all(name in names for name in _NEEDED):
            raise ModelError(
                f"{path.name} is not a .pt2 archive of one exported program",
                hint="save it with torch.export.save(program, path), torch 2.9 or newer",
            )
        if len(roots) > 1 or len(set(names)) < len(names):
            raise ModelError(f"{path.name} has entries twice or outside of its one folder; it is not loaded")
        for entry, name in zip(archive.infolist(), names, strict=True):
            if name.startswith(_EXTRA):
                continue
            if not (name in _NEEDED or _PLAIN.fullmatch(name) or _TENSOR.fullmatch(name)):
                raise ModelError(
                    f"{path.name} holds {name!r}, which may be code and is not loaded",
                    hint="save it with torch.export.save(program, path)",
                )
            entries[name] = archive.read(entry)
    return entries


def _written(entries: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    buffer.seek(0)
    return buffer


def _refuse_pickles(path: Path, config: dict[str, Any]) -> None:
    for name, entry in config["config"].items():
        is_tensor = re.fullmatch(r"(weight|tensor)_\d+", str(entry["path_name"]))
        if entry.get("use_pickle") or not is_tensor:
            raise ModelError(f"{path.name} stores {name!r} as a pickle, which is not loaded", hint="save plain tensors")


def _refuse_code(path: Path, sample_inputs: bytes) -> None:
    if not sample_inputs:
        return
    try:
        torch.load(io.BytesIO(sample_inputs), weights_only=True)
    except Exception as error:  # where this fails for any reason, torch falls back to unpickling
        raise ModelError(f"{path.name} has sample inputs that hold more than tensors; they are not loaded") from error


def _refuse_calls(path: Path, node: Any) -> None:
    for key, text in _texts(node):
        if key == "expr_str" and not _is_arithmetic(text):
            raise ModelError(f"{path.name} has a shape expression that is not arithmetic: {text!r}")
        if key == "target" and not _TARGET.fullmatch(text):
            raise ModelError(f"{path.name} calls {text!r}, which is no operator of PyTorch")


def _texts(node: Any) -> Iterator[tuple[str, str]]:
    """Yield every key whose value is text."""
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str):
                yield key, value
            else:
                yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _is_arithmetic(text: str) -> bool:
    """Return whether sympy's evaluation of ``text`` can call nothing but arithmetic."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(map(_is_harmless, nodes))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        is_symbol = isinstance(node.value, str) and _SYMBOL.fullmatch(node.value) is not None
        return is_symbol or isinstance(node.value, (bool, int, float))
    return isinstance(node, _ARITHMETIC)
