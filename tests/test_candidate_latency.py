"""Candidates of different widths, timed for real in the runtimes that are here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.candidate_latency import CandidateLatency
from edgeopt.errors import CompressionError, TargetError
from edgeopt.recipe import load_recipe
from edgeopt.samples import Dataset, Sample

RECIPE = """
name = "net"
[model]
factory = "net.py:build"
[model.inputs.image]
shape = [1, 3, 32, 32]
layout = "NCHW"
[calibration]
dataset = "mnist5k"
"""


class Noise:
    """Four pictures."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        image = np.random.default_rng(index).standard_normal((1, 3, 32, 32)).astype(np.float32)
        return Sample(f"noise {index}", {"image": image}, None)


def net(width: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


@pytest.fixture
def latency(tmp_path: Path) -> CandidateLatency:
    (tmp_path / "net.py").write_text("def build(): ...", encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")

    def opened() -> Dataset:
        return Noise()

    return CandidateLatency(load_recipe(tmp_path / "recipe.toml").recipe, opened)


def test_candidate_latency_is_a_share_of_the_whole_when_the_candidate_is_narrower(latency: CandidateLatency) -> None:
    # A sixteenth of the multiplications: the bound is far from what other load on the machine can do.
    assert 0 < latency(net(32), net(128), "arm64") < 0.5


def test_candidate_latency_refuses_when_it_would_time_the_call_alone(latency: CandidateLatency) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).eval()
    with pytest.raises(CompressionError, match=r"under 0\.2 ms nothing can be told"):
        latency(small, small, "x86")


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [("cuda", CompressionError, "does not run here"), ("arm", TargetError, "there is no target 'arm'")],
)
def test_candidate_latency_refuses_when_the_targets_runtime_is_not_here(
    latency: CandidateLatency, target: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        latency(net(4), net(4), target)
