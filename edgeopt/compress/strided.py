"""Strided 1 x 1 convolutions of few channels, trained without oneDNN's strides.

oneDNN writes past a buffer in the gradient of such a convolution's weights, where they are stored channels last, there
are fewer input channels than a vector has numbers, and the threads do not share the samples evenly: training ends in a
crash or, worse, does not.

Source: https://github.com/uxlfoundation/oneDNN/issues/6035, open as of torch 2.14.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_VECTOR = 16  # float32 numbers of AVX-512, the widest


@contextmanager
def strided_before(model: nn.Module) -> Iterator[None]:
    """Give the convolutions of ``model`` that are concerned only the places they read, inside the block.

    They compute the same, and have ``stride`` 1 meanwhile.
    """
    strides = {
        layer: layer.stride for layer in model.modules() if isinstance(layer, nn.Conv2d) and _is_concerned(layer)
    }
    hooks = [layer.register_forward_pre_hook(_places_read(stride)) for layer, stride in strides.items()]
    for layer in strides:
        layer.stride = (1, 1)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, stride in strides.items():
            layer.stride = stride


def _is_concerned(layer: nn.Conv2d) -> bool:
    strided = layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.padding in ((0, 0), "valid")
    return strided and layer.in_channels // layer.groups < _VECTOR


def _places_read(stride: tuple[int, ...]) -> Any:
    rows, columns = stride

    def subsample(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return inputs[0][..., ::rows, ::columns]

    return subsample
