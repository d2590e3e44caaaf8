from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeopt.compress.strided import strided_before

# Fewer input channels than a vector, 133 samples that two threads cannot share evenly, stored channels last by ``fit``.
TRAINING = """
import sys
from pathlib import Path
from small_nets import noisy_patterns, rebuilding, train_stage
from torch import nn
from edgeopt.artifacts import TorchModel
from edgeopt.training import TrainSettings


def net():
    wide = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Upsample(scale_factor=4), nn.Conv2d(8, 8, 3))
    return nn.Sequential(wide, nn.Conv2d(8, 16, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


settings = TrainSettings(epochs=8, batch_size=134, threads=2, validation_share=0.0)
train_stage(rebuilding(net, 1, 1, 8, 8), TorchModel(), *noisy_patterns(), settings, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("stride", [2, (1, 3)])
def test_a_strided_convolution_computes_the_same_from_the_places_it_reads(stride: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 1, stride=stride, dtype=torch.float64)
    kept = layer.stride
    inputs = torch.randn(3, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    expected = layer(inputs)
    wanted = torch.autograd.grad(expected.square().sum(), (inputs, layer.weight))
    with strided_before(layer):
        assert layer.stride == (1, 1)
        actual = layer(inputs)
        got = torch.autograd.grad(actual.square().sum(), (inputs, layer.weight))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(got, wanted)
    assert layer.stride == kept
    torch.testing.assert_close(layer(inputs), expected)  # no hook is left


def test_other_convolutions_are_left_as_they_are() -> None:
    layers = nn.Sequential(nn.Conv2d(16, 6, 1, stride=2), nn.Conv2d(4, 6, 3, stride=2), nn.Conv2d(4, 6, 1))
    strides = [layer.stride for layer in layers]
    with strided_before(layers):
        assert [layer.stride for layer in layers] == strides


def test_training_a_strided_convolution_of_few_channels_leaves_the_heap_whole(tmp_path: Path) -> None:
    checked = {"GLIBC_TUNABLES": "glibc.malloc.check=3", "PYTHONPATH": str(Path(__file__).parent)}
    ran = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path)], env=os.environ | checked, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
