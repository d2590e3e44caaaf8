"""Layouts of what a bundle takes and gives: the target's, or what the recipe asks for; the manifest says which."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_project import RECIPE, edgeopt_run, write_project

NET = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3, stride=2, padding=1)
    )
"""


def build(folder: Path, *arguments: str) -> tuple[int, str]:
    write_project(folder, recipe=RECIPE.replace('"logits"', '"mask"'), net=NET)
    done = edgeopt_run(folder, "build", *arguments)
    return done.returncode, done.stderr


def described(folder: Path, target: str) -> tuple[list[tuple[str, list[int]]], dict[str, tuple[int, ...]]]:
    """Return layout and shape of input and output as the manifest says them, and the golden vectors' shapes."""
    place = folder / "build" / "edgeopt" / target
    manifest = json.loads((place / "bundle.json").read_text())
    with np.load(place / "golden.npz") as golden:
        shapes = {name: golden[name].shape[1:] for name in golden.files if "/" in name}
    return [(manifest[side][0]["layout"], manifest[side][0]["shape"]) for side in ("inputs", "outputs")], shapes


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([], [("NHWC", [1, 8, 8, 3]), ("NHWC", [1, 4, 4, 2])]),
        (["output_layout=NCHW"], [("NHWC", [1, 8, 8, 3]), ("NCHW", [1, 2, 4, 4])]),
        (["input_layout=NCHW", "output_layout=NHWC"], [("NCHW", [1, 3, 8, 8]), ("NHWC", [1, 4, 4, 2])]),
    ],
)
def test_bundle_says_its_layouts_and_is_verified_in_them_when_built_for_arm64(
    asked: list[str], expected: list[tuple[str, list[int]]], tmp_path: Path
) -> None:
    options = [word for option in asked for word in ("--set", f"targets.arm64.{option}")]
    code, stderr = build(tmp_path / "project", "--target", "arm64", *options)
    assert code == 0, stderr
    found, golden = described(tmp_path / "project", "arm64")
    assert found == expected
    assert golden["input/image"] == tuple(expected[0][1][1:])
    assert golden["float/mask"] == golden["quantized/mask"] == tuple(expected[1][1][1:])


def test_build_refuses_when_onnx_is_to_give_channels_last(tmp_path: Path) -> None:
    code, stderr = build(tmp_path / "project", "--target", "x86", "--set", "targets.x86.output_layout=NHWC")
    assert code != 0
    assert "[targets.x86] output_layout: x86 gives outputs as the network does, NCHW, got NHWC" in stderr
