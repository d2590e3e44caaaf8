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

from edgeopt.artifacts import digest_of
from edgeopt.errors import ModelError, did_you_mean
from edgeopt.provenance import locate, split_factory
from edgeopt.settings import ModelSettings

# What sympy may be asked to parse: names, numbers and arithmetic, so that no attribute or call of Python fits through.
_SHAPE_EXPRESSION = re.compile(r"[A-Za-z0-9_+\-*/(), ]*")


def load_factory(reference: str, folder: Path) -> Callable[[], nn.Module]:
    """Import ``"package.module:function"`` or ``"file.py:function"``.

    Raises:
        ModelError: if the module, the file or the function is not there.
    """
    module_name, function_name = split_factory(reference)
    if module_name.endswith(".py"):
        module = _import_file(locate(module_name, folder))
    else:
        module = _import_module(module_name, reference)
    factory = getattr(module, function_name, None)
    if not callable(factory):
        functions = [name for name, value in vars(module).items() if callable(value)]
        raise ModelError(
            f"{module_name} has no function {function_name!r}", hint=did_you_mean(function_name, functions)
        )
    return cast(Callable[[], nn.Module], factory)


def call_factory(settings: ModelSettings, folder: Path) -> nn.Module:
    """Call the recipe's factory and return the network as it builds it, before any weights are loaded.

    Raises:
        ModelError: if the factory is not there or returns something else.
    """
    model = load_factory(str(settings.factory), folder)()
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


def _import_file(path: Path) -> ModuleType:
    # The full path keeps two recipes with a net.py each apart; the name is never seen by the user.
    name = f"_edgeopt_factory_{digest_of([str(path)])[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path.name} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _importable(path.parent):
        spec.loader.exec_module(module)
    return module


def _import_module(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the factory {reference!r} needs the module {error.name!r}, which is not installed",
            hint="for a file beside the recipe write 'file.py:function'",
        ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


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
