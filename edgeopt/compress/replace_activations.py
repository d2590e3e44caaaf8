"""Cheaper activations in place of dear ones: a piecewise linear one needs no exponential and no table.

Source: Howard et al.: Searching for MobileNetV3, 2019, arXiv 1905.02244, section 5.2 (hard swish and hard sigmoid);
Hendrycks, Gimpel: Gaussian Error Linear Units, 2016, arXiv 1606.08415 (the tanh form); Howard et al.: MobileNets, 2017,
arXiv 1704.04861 (ReLU6).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgeopt.compress.layers import run_named
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.compress.structure import Edit
from edgeopt.errors import CompressionError, did_you_mean
from edgeopt.stage import logger
from edgeopt.steps import ReplaceActivationsSettings

_MAKE: dict[str, Callable[[], nn.Module]] = {
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "GELU_tanh": lambda: nn.GELU(approximate="tanh"),
}

# What a network's code may call without a layer; a layer calls one of these itself.
_FUNCTIONS: dict[Any, str] = {
    functional.silu: "SiLU",
    functional.gelu: "GELU",
    functional.relu: "ReLU",
    functional.relu6: "ReLU6",
    torch.relu: "ReLU",
    torch.Tensor.relu: "ReLU",
    torch.sigmoid: "Sigmoid",
    torch.Tensor.sigmoid: "Sigmoid",
    functional.sigmoid: "Sigmoid",
}


@dataclass(frozen=True)
class ReplaceActivationsReport:
    """Names of the layers that were replaced, by ``"FROM -> TO"``, and how many calls without a layer were left."""

    replaced: dict[str, list[str]]
    functional_calls_left: dict[str, int]

    @property
    def summary(self) -> str:
        """How many of which."""
        return ", ".join(f"{len(layers)} {change}" for change, layers in self.replaced.items())


def replace_activations(
    context: StepContext, settings: ReplaceActivationsSettings, folder: Path
) -> ReplaceActivationsReport:
    """Replace the activations of ``context.source`` that are layers, and hand the network on.

    Raises:
        CompressionError: there is none of them, or an ignored layer is not there.
    """
    model = context.build(context.source)
    _refuse_unknown(model, settings.ignored_layers)
    structure, replaced = context.structure, {}
    for before, after in settings.activations.items():
        found = [name for name in _layers_of(model, before) if name not in settings.ignored_layers]
        if not found:
            continue
        edit: Edit = {"kind": "replace_activation", "from": before, "to": after, "layers": found}
        apply_replacement(model, edit, context.example_inputs)
        structure = structure.edited(edit)
        replaced[f"{before} -> {after}"] = found
    left = _functional_calls(model, context.example_inputs, set(settings.activations))
    if not replaced:
        asked = ", ".join(settings.activations)
        calls = ", ".join(f"{count} of {name}" for name, count in left.items())
        raise CompressionError(
            f"the network has no layer of {asked}" + (f", but calls of functions: {calls}" if calls else ""),
            hint="write nn.SiLU() as a layer of the network where it calls functional.silu" if calls else None,
        )
    for name, count in left.items():
        logger.warning("%d calls of %s are functions, not layers, and stay", count, name)
    hand_on(model, structure, folder)
    return ReplaceActivationsReport(replaced, left)


def apply_replacement(model: nn.Module, edit: Edit, _example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Replace in ``model``, in place, the layers that the edit names.

    Raises:
        CompressionError: a layer is not there, or is another activation than the edit says.
    """
    for name in edit["layers"]:
        if name not in _layers_of(model, edit["from"]) or edit["to"] not in _MAKE:
            raise CompressionError(
                f"structure: layer {name!r} is no {edit['from']} that could become {edit['to']}",
                hint="the network was changed since: run the step again",
            )
        model.set_submodule(name, _MAKE[edit["to"]]())


def _layers_of(model: nn.Module, activation: str) -> list[str]:
    """Return all names of the layers that are one activation; one layer may stand in several places."""
    return [
        name for name, layer in model.named_modules(remove_duplicate=False) if name and _name_of(layer) == activation
    ]


def _name_of(layer: nn.Module) -> str:
    # By the very class: a subclass may compute something else.
    name = type(layer).__name__ if type(layer).__module__.startswith("torch.nn.") else ""
    return "GELU_tanh" if isinstance(layer, nn.GELU) and layer.approximate == "tanh" else name


def _functional_calls(model: nn.Module, inputs: tuple[torch.Tensor, ...], wanted: set[str]) -> dict[str, int]:
    """Return how often the network's own code calls an activation, by name."""
    counter = _CallCounter()
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: counter.counts.subtract([type(layer).__name__]))
        for layer in model.modules()
        if _name_of(layer) in _MAKE
    ]
    try:
        with torch.no_grad(), counter:
            run_named(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: count for name, count in sorted(counter.counts.items()) if count > 0 and name in wanted}


class _CallCounter(TorchFunctionMode):
    """Counts calls of activations; one that calls another inside itself counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FUNCTIONS:
            self.counts[_FUNCTIONS[func]] += 1
        return func(*args, **(kwargs or {}))


def _refuse_unknown(model: nn.Module, names: tuple[str, ...]) -> None:
    known = [name for name, _ in model.named_modules()]
    for name in names:
        if name not in known:
            raise CompressionError(f"the network has no layer {name!r}", hint=did_you_mean(name, known))
