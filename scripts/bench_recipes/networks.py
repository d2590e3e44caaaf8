"""Networks for the bench that no package brings with weights: definitions of the tests, with seeded random weights."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/networks"))

from architectures import ARCHITECTURES


def resnet18() -> nn.Module:
    """Return torchvision's ResNet-18."""
    return ARCHITECTURES["resnet18"].network()


def ds_cnn() -> nn.Module:
    """Return the keyword spotter of "Hello Edge"."""
    return ARCHITECTURES["ds_cnn"].network()


def resnet8() -> nn.Module:
    """Return MLPerf Tiny's image classifier."""
    return ARCHITECTURES["resnet8"].network()


def wake_words() -> nn.Module:
    """Return MLPerf Tiny's visual wake words, MobileNetV1 with a quarter of the channels."""
    return ARCHITECTURES["wake_words"].network()
