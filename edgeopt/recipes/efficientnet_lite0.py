"""EfficientNet-Lite0 as TensorFlow defines it: inverted residuals, no squeeze-and-excitation, ReLU6, SAME padding.

Attribute names are those of the published checkpoint (``_blocks.0._depthwise_conv.weight``), which loads strictly.

TensorFlow pads a strided convolution so that the *end* gets the odd pixel: a 3x3 kernel with stride 2 on an even side
pads 0 before and 1 after. PyTorch's convolution pads both ends alike, so the difference is padded by hand. The amounts
are constants for an even input side; nothing is computed from a shape, which is what a tracing exporter gets wrong.

Source: Tan and Le, "EfficientNet", arXiv 1905.11946; the Lite variant of github.com/tensorflow/tpu.
"""

from __future__ import annotations

from torch import Tensor, nn

# expand ratio, output channels, number of blocks, stride of the first block, kernel size
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_STEM_CHANNELS, _HEAD_CHANNELS, _NUM_CLASSES = 32, 1280, 1000


def build() -> nn.Module:
    """Return the network, untrained; it takes ``(N, 3, 224, 224)`` and gives logits ``(N, 1000)``."""
    return EfficientNetLite0()


class EfficientNetLite0(nn.Module):
    """Stem, sixteen inverted residuals, head, global average, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._pad = _same_padding(kernel=3, stride=2)
        self._conv_stem = nn.Conv2d(3, _STEM_CHANNELS, 3, stride=2, bias=False)
        self._bn0 = _batch_norm(_STEM_CHANNELS)
        self._blocks = nn.ModuleList()
        channels = _STEM_CHANNELS
        for expand, width, depth, stride, kernel in _STAGES:
            for index in range(depth):
                self._blocks.append(InvertedResidual(channels, width, expand, kernel, stride if index == 0 else 1))
                channels = width
        self._conv_head = nn.Conv2d(channels, _HEAD_CHANNELS, 1, bias=False)
        self._bn1 = _batch_norm(_HEAD_CHANNELS)
        self._relu6 = nn.ReLU6()
        self._pool = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(_HEAD_CHANNELS, _NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(N, 1000)`` for ``image`` of ``(N, 3, H, W)`` with H and W multiples of 32."""
        x = self._relu6(self._bn0(self._conv_stem(self._pad(image))))
        for block in self._blocks:
            x = block(x)
        x = self._relu6(self._bn1(self._conv_head(x)))
        logits: Tensor = self._fc(self._dropout(self._pool(x).flatten(1)))
        return logits


class InvertedResidual(nn.Module):
    """Widen 1x1, filter depthwise, narrow 1x1; the input is added where the shapes are the same."""

    def __init__(self, channels: int, width: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = channels * expand
        if expand != 1:
            self._expand_conv = nn.Conv2d(channels, inner, 1, bias=False)
            self._bn0 = _batch_norm(inner)
        self._pad = _same_padding(kernel, stride)
        padding = kernel // 2 if stride == 1 else 0
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, padding, groups=inner, bias=False)
        self._bn1 = _batch_norm(inner)
        self._project_conv = nn.Conv2d(inner, width, 1, bias=False)
        self._bn2 = _batch_norm(width)
        self._relu6 = nn.ReLU6()
        self._expands = expand != 1
        self._adds_input = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, width, H / stride, W / stride)``."""
        y: Tensor = self._relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = self._relu6(self._bn1(self._depthwise_conv(self._pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self._adds_input else y


def _same_padding(kernel: int, stride: int) -> nn.Module:
    """Return TensorFlow's SAME padding for stride 2 on an even side; with stride 1 the convolution pads itself."""
    if stride == 1:
        return nn.Identity()
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return nn.ZeroPad2d((before, after, before, after))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
