"""Where a network comes from: a Python factory with weights, a ``.pt2`` exported program or an ``.onnx`` file.

Nothing is unpickled: weights are safetensors or a state dict that ``torch.load(weights_only=True)`` accepts, and a
``.pt2`` archive is looked through before torch may open it (:mod:`edgeopt.program_archive`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgeopt.artifacts import digest_of
from edgeopt.errors import ModelError, did_you_mean
from edgeopt.program_archive import plain_archive
from edgeopt.provenance import locate, split_factory
from edgeopt.settings import ModelSettings

# Set on a module that a factory's file imported from its own folder.
_NEIGHBOUR = "_edgeopt_neighbour"


def load_factory(reference: str, folder: Path) -> Callable[..., nn.Module]:
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
    return cast(Callable[..., nn.Module], factory)


def call_factory(settings: ModelSettings, folder: Path) -> nn.Module:
    """Call the recipe's factory and return the network as it builds it, before any weights are loaded.

    Raises:
        ModelError: if the factory is not there, does not take the recipe's arguments, refuses one of their values by a
            ``ValueError``, or returns something else.
    """
    factory = load_factory(str(settings.factory), folder)
    _check_arguments(factory, settings)
    module_name, _ = split_factory(str(settings.factory))
    with _importable(locate(module_name, folder).parent) if module_name.endswith(".py") else nullcontext():
        try:
            model = factory(**settings.arguments)
        except ValueError as error:
            given = ", ".join(f"{name}={value!r}" for name, value in settings.arguments.items())
            raise ModelError(f"the factory {settings.factory!r} refuses ({given}): {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory {settings.factory!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a network; every name must fit.

    Raises:
        ModelError: if the file holds more than tensors, or a weight is missing, left over or of another shape.
    """
    state = read_state_dict(path)
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
        program = torch.export.load(plain_archive(path))
    except ModelError:
        raise
    except Exception as error:  # zipfile, json, torch and its schema share no root for what a damaged file raises
        raise ModelError(f"{path.name} is not a .pt2 archive that torch can load: {error}") from error
    check_finite(program.state_dict, path.name)
    return program


def example_inputs(settings: ModelSettings, batch_size: int = 1) -> tuple[torch.Tensor, ...]:
    """Return inputs of zeros with the recipe's shapes, to trace with, never to calibrate with."""
    return tuple(
        torch.zeros(batch_size, *given.shape[1:], dtype=getattr(torch, given.dtype))
        for given in settings.inputs.values()
    )


def _check_arguments(factory: Callable[..., nn.Module], settings: ModelSettings) -> None:
    """Refuse arguments that a factory does not take, and a factory that needs more than it is given."""
    parameters = inspect.signature(factory).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    known = {item.name: item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}
    for name in () if takes_any else settings.arguments:
        if name not in known:
            hint = did_you_mean(name, list(known)) or "it takes no arguments at all"
            raise ModelError(f"[model.arguments] the factory {settings.factory!r} takes no {name!r}", hint=hint)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in settings.arguments:
            raise ModelError(
                f"the factory {settings.factory!r} needs the argument {name!r}",
                hint=f"give it in the recipe: [model.arguments] {name} = ...",
            )


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
    """Let Python files import their neighbours; what an earlier recipe imported so is forgotten first.

    Else a second recipe with a ``layers.py`` would get the first one's, and a file that was edited between two builds
    of one process its old content.
    """
    for name in [name for name, module in sys.modules.items() if getattr(module, _NEIGHBOUR, None) is not None]:
        if getattr(sys.modules[name], _NEIGHBOUR) != _stamp(sys.modules[name], folder):
            del sys.modules[name]
    known = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            if (stamp := _stamp(sys.modules[name], folder)) is not None:
                setattr(sys.modules[name], _NEIGHBOUR, stamp)


def _stamp(module: ModuleType, folder: Path) -> tuple[str, int] | None:
    """Return what tells whether a module below ``folder`` is still the one on disk; ``None`` for another module."""
    path = Path(getattr(module, "__file__", None) or "")
    if not path.is_file() or not path.is_relative_to(folder):
        return None
    return str(path), path.stat().st_mtime_ns


def read_state_dict(path: Path) -> Mapping[str, torch.Tensor]:
    """Read a state dict without running any code.

    Raises:
        ModelError: the file is damaged, or holds more than tensors.
    """
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
