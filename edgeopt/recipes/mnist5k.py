"""The networks of the built-in recipe ``mnist5k``: plain convolutional ones for 28 x 28 grey digits."""

from __future__ import annotations

from typing import Literal

from torch import nn

_STAGES = ((16,), (32, 48), (64,), (128,))  # channels of the blocks between poolings
_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}


def build(
    width: float = 1.0,
    depth: int = 1,
    kernel: int = 3,
    activation: Literal["relu", "relu6", "hardswish"] = "relu",
) -> nn.Module:
    """Return an untrained network: ``(N, 1, 28, 28)`` in [0, 1] to logits ``(N, 10)``.

    As it is, with 132,058 parameters, it is the teacher; the arguments make a family of it, to search.

    Args:
        width: what the channels of every block are multiplied with.
        depth: how often the last block of every stage is there.
        kernel: of every convolution, odd.
        activation: behind every convolution.

    Raises:
        ValueError: there is no such network.
    """
    if width <= 0 or depth < 1 or kernel < 1 or kernel % 2 == 0:
        raise ValueError("width is above 0, depth at least 1 and kernel odd")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(_ACTIVATIONS)}")
    layers: list[nn.Module] = []
    before = 1
    for index, stage in enumerate(_STAGES):
        layers += [nn.MaxPool2d(2)] if index else []
        for channels in (*stage, *stage[-1:] * (depth - 1)):
            after = max(1, round(channels * width))
            layers += _block(before, after, kernel, activation)
            before = after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * 3 * 3, 10))


def _block(in_channels: int, out_channels: int, kernel: int, activation: str) -> tuple[nn.Module, ...]:
    """Return convolution, batch norm and activation, of which a ReLU fuses to one integer kernel with them."""
    return (
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        _ACTIVATIONS[activation](inplace=True),
    )
