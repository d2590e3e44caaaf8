"""The teacher of the built-in recipe ``mnist5k``: a plain convolutional network for 28 x 28 grey digits."""

from __future__ import annotations

from torch import nn


def build() -> nn.Module:
    """Return the untrained teacher: ``(N, 1, 28, 28)`` in [0, 1] to logits ``(N, 10)``, 132,058 parameters."""
    return nn.Sequential(
        *_block(1, 16),
        nn.MaxPool2d(2),
        *_block(16, 32),
        *_block(32, 48),
        nn.MaxPool2d(2),
        *_block(48, 64),
        nn.MaxPool2d(2),
        *_block(64, 128),
        nn.Flatten(),
        nn.Linear(128 * 3 * 3, 10),
    )


def _block(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Return convolution 3 x 3, batch norm and ReLU, which fuse to one integer kernel."""
    return (
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
