"""A one-dimensional convolutional network for gestures: a window of six signals to one of seven exercises."""

from __future__ import annotations

from torch import nn

_NUM_SIGNALS, _NUM_CLASSES = 6, 7
_WIDTHS = (1, 1, 2, 2, 4)
_STRIDES = (2, 1, 2, 1, 2)


def build(width: int = 48, kernel_size: int = 5, dropout: float = 0.3) -> nn.Module:
    """Return the untrained network, ``(N, 6, steps)`` to logits ``(N, 7)``.

    Args:
        width: channels of the first block; the last has four times as many.
        kernel_size: steps that each convolution sees, odd.
        dropout: share of the last features that a training step leaves out, against learning people by heart.
    """
    blocks = nn.Sequential()
    in_channels = _NUM_SIGNALS
    for number, (times, stride) in enumerate(zip(_WIDTHS, _STRIDES, strict=True), start=1):
        out_channels = times * width
        convolution = nn.Conv1d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        blocks.add_module(f"block{number}", nn.Sequential(convolution, nn.BatchNorm1d(out_channels), nn.ReLU()))
        in_channels = out_channels
    return nn.Sequential(
        blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(in_channels, _NUM_CLASSES)
    )
