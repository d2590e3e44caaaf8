"""Batch norm folded into the layer before it, as an edit: ``{"kind": "fold_batch_norm", "pairs": [[layer, norm]]}``.

A convolution with a batch norm behind it is one convolution in every runtime; rounding its weights means something only
once they are what the runtime sees.

Source: Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgeopt.compress.layers import prunable_layers, run_hooked
from edgeopt.compress.structure import Edit
from edgeopt.errors import CompressionError


def folding_edit(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> Edit | None:
    """Return the edit that folds each batch norm that follows a layer directly, or ``None`` if none does."""
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
        if isinstance(norm, _BatchNorm)
    ]
    run_hooked(model, example_inputs, hooks)
    return {"kind": "fold_batch_norm", "pairs": pairs} if pairs else None


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
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        model.set_submodule(layer_name, fuse(layer, norm))  # type: ignore[type-var]
        model.set_submodule(norm_name, nn.Identity())
    model.train(was_training)
