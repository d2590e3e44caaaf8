"""Batch norm folded into the layer before it, as an edit: ``{"kind": "fold_batch_norm", "pairs": [[layer, norm]]}``.

A convolution with a batch norm behind it is one convolution in every runtime; rounding its weights means something only
once they are what the runtime sees.

Source: Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877, section 3.2.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgeopt.compress.layers import prunable_layers, run_hooked, run_named
from edgeopt.compress.structure import Edit
from edgeopt.errors import CompressionError

_ALIKE = 1e-3  # of the largest answer


def folding_edit(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> Edit | None:
    """Return the edit that folds each batch norm that follows a layer directly, or ``None`` if none does.

    One is folded only where the network answers the same without it: what a layer makes may go elsewhere too.
    """
    made_by: dict[int, str] = {}
    pairs: list[list[str]] = []
    kept: list[Any] = []  # so that no two tensors have one address

    def made(name: str, output: torch.Tensor) -> None:
        made_by[id(output)] = name
        kept.append(output)

    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: made(name, output))
        for name, layer in prunable_layers(model).items()
    ]
    hooks += [
        norm.register_forward_pre_hook(
            lambda _norm, inputs, name=name: (
                pairs.append([made_by[id(inputs[0])], name]) if id(inputs[0]) in made_by else None
            )
        )
        for name, norm in model.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None
    ]
    run_hooked(model, example_inputs, hooks)
    pairs = _harmless(model, pairs, example_inputs)
    return {"kind": "fold_batch_norm", "pairs": pairs} if pairs else None


def _harmless(model: nn.Module, pairs: list[list[str]], example_inputs: tuple[torch.Tensor, ...]) -> list[list[str]]:
    """Return the pairs that can be folded, each alone and all together, without changing what the network answers."""
    probe = copy.deepcopy(model).eval()
    for norm in probe.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.fill_(0.5)  # none may pass for the identity
            norm.running_var.copy_(torch.linspace(0.5, 2, len(norm.running_var)))
    inputs = tuple(_noise(tensor) for tensor in example_inputs)
    if _answers_alike(probe, pairs, inputs):
        return pairs
    alone = [pair for pair in pairs if _answers_alike(probe, [pair], inputs)]
    return alone if _answers_alike(probe, alone, inputs) else []


def _answers_alike(probe: nn.Module, pairs: list[list[str]], inputs: tuple[torch.Tensor, ...]) -> bool:
    folded = copy.deepcopy(probe)
    try:
        fold_batch_norm(folded, {"pairs": pairs}, inputs)
        with torch.no_grad():
            answers = list(zip(run_named(probe, inputs), run_named(folded, inputs), strict=True))
    except (RuntimeError, CompressionError):  # the norm's channels are not the layer's
        return False
    return all(bool((before - after).abs().max() <= _ALIKE * before.abs().max()) for before, after in answers)


def _noise(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(0))


def fold_batch_norm(model: nn.Module, edit: Edit, _example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Fold the pairs that the edit names, in ``model``; a folded batch norm becomes the identity.

    Raises:
        CompressionError: a pair is not there, or no layer and its batch norm.
    """
    modules = dict(model.named_modules())
    was_training = model.training
    model.eval()
    for layer_name, norm_name in edit["pairs"]:
        layer, norm = modules.get(layer_name), modules.get(norm_name)
        if not isinstance(norm, _BatchNorm) or not isinstance(layer, (_ConvNd, nn.Linear)):
            raise CompressionError(
                f"structure: {norm_name!r} is no batch norm behind {layer_name!r}",
                hint="the network was changed since: run the step again",
            )
        if isinstance(layer, nn.Linear):
            fused: nn.Module = fuse_linear_bn_eval(layer, norm)
        else:
            fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _ConvTransposeNd))
        model.set_submodule(layer_name, fused)
        model.set_submodule(norm_name, nn.Identity())
    model.train(was_training)
