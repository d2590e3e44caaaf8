"""What a network is made of, layer by layer: which can be pruned, which make its outputs, what they cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch_pruning
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from edgeopt.errors import CompressionError, did_you_mean
from edgeopt.stage import logger

PRUNABLE = (_ConvNd, nn.Linear)

_QKV = ("query", "key", "value")

Result = TypeVar("Result")


def dependency_graph(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> Any:
    """Trace which layers must lose a channel together; ``model`` must be :func:`traceable`.

    Raises:
        CompressionError: the network cannot be run on the inputs.
    """
    run_named(model, example_inputs)
    return torch_pruning.DependencyGraph().build_dependency(model, example_inputs)


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Let every parameter take a gradient, which is what is traced, with dropout and batch statistics off."""
    was_training = model.training
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.eval().requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)


def quietly(action: Callable[[], Result]) -> Result:
    """Return what ``action`` returns, with what libraries warn of on the way sent to the log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = action()
    for warning in caught:
        logger.debug("%s", warning.message)
    return result


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}


def layers_in(model: nn.Module, name: str) -> list[str]:
    """Return the prunable layers that a name in the recipe means: itself, or all inside it.

    Raises:
        CompressionError: there are none.
    """
    layers = prunable_layers(model)
    inside = [layer for layer in layers if layer == name or layer.startswith(name + ".")]
    if not inside:
        raise CompressionError(
            f"the network has no convolution or linear layer {name!r}", hint=did_you_mean(name, list(layers))
        )
    return inside


def record_inputs(
    model: nn.Module, names: list[str], example_inputs: tuple[torch.Tensor, ...]
) -> dict[str, list[torch.Tensor]]:
    """Return what each named layer is given, once for every time that it is called."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def note(name: str) -> RemovableHandle:
        return model.get_submodule(name).register_forward_pre_hook(lambda _, given: found[name].append(given[0]))

    hooks = [note(name) for name in names]
    run_hooked(model, example_inputs, hooks)
    return found


def output_layers(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> set[str]:
    """Return the names of the layers that make the network's outputs, so that pruning them would change their shape.

    Autograd's graph is walked from each output back to the first prunable layer on every way; ``model`` must be
    :func:`traceable`.
    """
    made_by: dict[Any, str] = {}
    hooks = [_note_gradient(name, layer, made_by) for name, layer in prunable_layers(model).items()]
    try:
        outputs = run_named(model, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found, seen = set(), set()
    stack = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made_by:
            found.add(made_by[node])
        else:
            stack.extend(before for before, _ in node.next_functions)
    return found


def run_named(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Run the network and return its output tensors in order.

    Raises:
        CompressionError: it cannot be run; names the innermost module that failed.
    """
    entered: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: (entered.pop(), None)[1]))
    try:
        return _tensors_in(model(*example_inputs))
    except (RuntimeError, TypeError, ValueError) as error:
        where = f"layer {entered[-1]!r}" if entered and entered[-1] else "the network"
        raise CompressionError(f"{where} cannot be run: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def run_hooked(model: nn.Module, example_inputs: tuple[torch.Tensor, ...], hooks: Iterable[RemovableHandle]) -> None:
    """Run the network once, without gradients, for what ``hooks`` note, and remove them."""
    try:
        with torch.no_grad():
            run_named(model, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()


def count_macs(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> int:
    """Return the multiply-accumulates that convolutions and linear layers need for the example inputs.

    Those of torch's attention are its projections; what it multiplies without weights is not counted, as elsewhere.
    """
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # Each weight meets each output position once; a transposed convolution is one run backwards.
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        positions = inputs[0] if isinstance(layer, _ConvTransposeNd) else output
        counts.append(positions.numel() // positions.shape[_channel_axis(layer)] * weight.numel())

    def count_attention(layer: nn.Module, args: tuple[torch.Tensor, ...], named: dict[str, Any], _output: Any) -> None:
        assert isinstance(layer, nn.MultiheadAttention)
        query, key, value = (args[place] if place < len(args) else named[name] for place, name in enumerate(_QKV))
        # A projection's width is that of its input times the attention's; the output is projected once more.
        counts.append((2 * query.numel() + key.numel() + value.numel()) * layer.embed_dim)

    hooks = [layer.register_forward_hook(count) for layer in prunable_layers(model).values()]
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    hooks += [attention.register_forward_hook(count_attention, with_kwargs=True) for attention in attentions]
    run_hooked(model, example_inputs, hooks)
    return sum(counts)


def num_channels(layer: nn.Module) -> int:
    """Return how many output channels or features a prunable layer has."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _channel_axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _note_gradient(name: str, layer: nn.Module, made_by: dict[Any, str]) -> RemovableHandle:
    def note(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        made_by[output.grad_fn] = name

    return layer.register_forward_hook(note)


def _tensors_in(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors_in(part)]
