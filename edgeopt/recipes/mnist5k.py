"""The teacher of the built-in recipe ``mnist5k``: a plain convolutional network for 28 x 28 grey digits."""

from __future__ import annotations

from torch import nn


def build() -> nn.Module:
    """Return the untrained teacher: ``(N, 1, 28, 28)`` in [0, 1] to logits ``(N, 10)``."""
    return nn.Sequential(
        *_block(1, 24),
        *_block(24, 32),
        nn.MaxPool2d(2),
        *_block(32, 48),
        *_block(48, 64),
        nn.MaxPool2d(2),
        *_block(64, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def _block(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Return convolution 3 x 3, batch norm and ReLU, which fuse to one integer kernel."""
    return (
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
