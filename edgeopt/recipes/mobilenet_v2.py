"""MobileNetV2 of width 1.0; torchvision's ImageNet checkpoint loads strictly.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381, table 2.
"""

from __future__ import annotations

from torch import Tensor, nn

# expand ratio, output channels, number of blocks, stride of the first block
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_CHANNELS, _HEAD_CHANNELS, _NUM_CLASSES = 32, 1280, 1000


def build() -> nn.Module:
    """Return the network, untrained; it takes ``(N, 3, 224, 224)`` and gives logits ``(N, 1000)``."""
    return MobileNetV2()


class MobileNetV2(nn.Module):
    """Stem, seventeen inverted residuals, head, global average, classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn_relu6(3, _STEM_CHANNELS, kernel=3, stride=2)]
        channels = _STEM_CHANNELS
        for expand, width, depth, stride in _STAGES:
            for index in range(depth):
                layers.append(InvertedResidual(channels, width, expand, stride if index == 0 else 1))
                channels = width
        layers.append(_conv_bn_relu6(channels, _HEAD_CHANNELS, kernel=1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(_HEAD_CHANNELS, _NUM_CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(N, 1000)`` for ``image`` of ``(N, 3, H, W)``."""
        logits: Tensor = self.classifier(self.pool(self.features(image)).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """Widen 1x1, filter depthwise 3x3, narrow 1x1; the input is added where the shapes are the same."""

    def __init__(self, channels: int, width: int, expand: int, stride: int) -> None:
        super().__init__()
        inner = channels * expand
        widen = [] if expand == 1 else [_conv_bn_relu6(channels, inner, kernel=1)]
        self.conv = nn.Sequential(
            *widen,
            _conv_bn_relu6(inner, inner, kernel=3, stride=stride, groups=inner),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self._adds_input = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, width, H / stride, W / stride)``."""
        y: Tensor = self.conv(x)
        return x + y if self._adds_input else y


def _conv_bn_relu6(channels: int, width: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    )
