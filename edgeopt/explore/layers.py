"""The layers of a network that cost most, by what their kernels on a target see of them: kind, window and sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Kind = Literal["conv", "depthwise_conv", "linear", "max_pool", "average_pool"]
Pair = tuple[int, int]
Padding = tuple[int, int, int, int]

_BLOCK = 8
_NONE: Padding = (0, 0, 0, 0)

_WINDOWS: dict[type[nn.Module], Kind] = {
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.MaxPool1d: "max_pool",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool1d: "average_pool",
    nn.AvgPool2d: "average_pool",
    nn.AdaptiveAvgPool1d: "average_pool",
    nn.AdaptiveAvgPool2d: "average_pool",
}


@dataclass(frozen=True, order=True)
class Layer:
    """One layer; sizes are height and width, and a layer along one axis has the height 1, as TFLite runs it.

    ``padding`` is what is put around the input: top, left, bottom, right. A linear layer has the kernel 1 x 1, and its
    rows as its width.
    """

    kind: Kind
    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Padding
    groups: int
    in_size: Pair
    out_size: Pair

    @property
    def family(self) -> tuple[object, ...]:
        """What has to be the same for two layers to run in the same kernel, differing in size alone."""
        groups = self.groups if self.kind == "conv" else None
        return self.kind, self.kernel, self.stride, self.dilation, any(self.padding), groups

    @property
    def blocks(self) -> Pair:
        """Input and output channels as kernels take them, eight at once: measured, one channel costs what eight do."""
        return -(-self.in_channels // _BLOCK) * _BLOCK, -(-self.out_channels // _BLOCK) * _BLOCK

    @property
    def work(self) -> int:
        """Multiply-accumulates of a kernel that takes whole blocks; of a pool, comparisons or additions."""
        inputs, outputs = self.blocks
        inputs = inputs if self.groups == 1 else self.in_channels // self.groups
        return math.prod(self.out_size) * outputs * math.prod(self.kernel) * inputs


def layers_of(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> list[Layer]:
    """Run a network once and return its convolutions, linear layers and pools in the order in which they ran.

    What is no module, an addition in ``forward`` for one, is not seen.
    """
    found: list[Layer] = []

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        found.append(_layer(module, inputs[0], output))

    kinds = (*_WINDOWS, nn.Linear)
    hooks = [item.register_forward_hook(note) for item in model.modules() if isinstance(item, kinds)]
    try:
        with torch.no_grad():
            model.eval()(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _layer(module: nn.Module, source: torch.Tensor, output: torch.Tensor) -> Layer:
    if isinstance(module, nn.Linear):
        rows = (1, output.numel() // output.shape[0] // module.out_features)
        return Layer("linear", module.in_features, module.out_features, (1, 1), (1, 1), (1, 1), _NONE, 1, rows, rows)
    kind = next(kind for cls, kind in _WINDOWS.items() if isinstance(module, cls))
    sizes = _pair(source.shape[2:], source), _pair(output.shape[2:], output)
    channels = source.shape[1], output.shape[1]
    if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
        window = (sizes[0][0] // sizes[1][0], sizes[0][1] // sizes[1][1])
        return Layer(kind, *channels, window, window, (1, 1), _NONE, channels[0], *sizes)
    given: Any = module
    kernel, dilation = _pair(given.kernel_size, source), _pair(getattr(given, "dilation", 1), source)
    groups = getattr(given, "groups", channels[0])
    if kind == "conv" and groups == channels[0] > 1:
        kind = "depthwise_conv"
    stride = _pair(given.stride or given.kernel_size, source)
    padding = _padding(given.padding, kernel, dilation, source)
    return Layer(kind, *channels, kernel, stride, dilation, padding, groups, *sizes)


def _padding(given: Any, kernel: Pair, dilation: Pair, source: torch.Tensor) -> Padding:
    """Return what torch pads: so much on both sides, or by name."""
    if given == "valid":
        return _NONE
    if given == "same":  # an odd one goes to the end
        totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        return (totals[0] // 2, totals[1] // 2, -(-totals[0] // 2), -(-totals[1] // 2))
    height, width = (0, *_numbers(given, source))[-2:]
    return (height, width, height, width)


def _pair(sizes: Any, source: torch.Tensor) -> Pair:
    """Return the sizes of one or two axes as height and width."""
    height, width = (1, *_numbers(sizes, source))[-2:]
    return height, width


def _numbers(given: Any, source: torch.Tensor) -> tuple[int, ...]:
    """Return a module's setting for every axis that ``source`` has behind batch and channels."""
    return (given,) * (source.ndim - 2) if isinstance(given, int) else tuple(map(int, given))
