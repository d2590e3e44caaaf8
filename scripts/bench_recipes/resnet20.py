"""ResNet-20 for grey pictures of 28 x 28: three groups of three blocks, as for CIFAR-10 in the paper.

A block that changes the shape has a 1 x 1 convolution on its way past, which is the paper's option B, where its CIFAR
nets pad with zeros.

Source: He et al.: Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

_NUM_CLASSES = 10


class Block(nn.Module):
    """Two 3 x 3 convolutions and a way past them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(in_channels, out_channels, 3, stride),
            nn.ReLU(),
            *_convolution(out_channels, out_channels, 3, 1),
        )
        keeps_shape = in_channels == out_channels and stride == 1
        self.past = nn.Identity() if keeps_shape else nn.Sequential(*_convolution(in_channels, out_channels, 1, stride))
        self.activation = nn.ReLU()

    def forward(self, tensor: Tensor) -> Tensor:
        """Return ``(N, out, H / stride, W / stride)``."""
        activated: Tensor = self.activation(self.body(tensor) + self.past(tensor))
        return activated


def build(widths: Sequence[int] = (16, 32, 64), depth: int = 20) -> nn.Module:
    """Return the untrained network, ``(N, 1, 28, 28)`` to logits ``(N, 10)``.

    Args:
        widths: channels of each group; every group but the first halves height and width.
        depth: 2 more than a multiple of twice the groups, as in the paper.

    Raises:
        ValueError: for another depth.
    """
    num_blocks, rest = divmod(depth - 2, 2 * len(widths))
    if num_blocks < 1 or rest:
        raise ValueError(f"{len(widths)} groups make a depth of 2 and a multiple of {2 * len(widths)}, got {depth}")
    in_channels = widths[0]
    layers: list[nn.Module] = [*_convolution(1, in_channels, 3, 1), nn.ReLU()]
    for group, width in enumerate(widths):
        for block in range(num_blocks):
            layers.append(Block(in_channels, width, 2 if group and not block else 1))
            in_channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, _NUM_CLASSES))


def _convolution(in_channels: int, out_channels: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False)
    return convolution, nn.BatchNorm2d(out_channels)
