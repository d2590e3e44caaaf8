"""A recipe, a network and samples so small that a build takes seconds, for every test that needs a whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import edgeopt

ROOT = Path(edgeopt.__file__).parent.parent

NET = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 4),
    )
"""

# Class k is brighter in its own quarter of the picture, so that a training of two epochs has something to learn.
PREPROCESS = """
import numpy as np
from edgeopt.samples import Sample

SEEDS = {"train": 0, "calibration": 1000, "held_out": 2000}

class Noise:
    def __init__(self, split):
        self.split = split
    def __len__(self):
        return 16
    def __getitem__(self, index):
        image = np.random.default_rng(SEEDS[self.split] + index).random((1, 3, 8, 8), dtype=np.float32)
        label = index % 4
        image[..., 4 * (label // 2) :][..., :4, 4 * (label % 2) :] += 1
        return Sample(f"{self.split}/{index}", {"image": image}, label)

def open_dataset(split, inputs, options):
    return Noise(split)
"""

RECIPE = """
[model]
factory = "net.py:build"
outputs = ["logits"]
[model.inputs.image]
shape = [1, 3, 8, 8]
[calibration]
dataset = "noise"
num_samples = 8
num_held_out = 8
num_golden = 4
[parity]
min_sqnr_db = 0.0
min_cosine = 0.5
min_top1_agreement = 0.5
min_integer_coverage = 0.5
"""

COMPRESSION = """
[train]
epochs = 2
batch_size = 8
threads = 1
[[compress]]
method = "prune"
pruning_ratio = 0.5
round_to = 4
[[compress]]
method = "distill"
epochs = 2
batch_size = 8
threads = 1
"""


def write_project(folder: Path, *, recipe: str = RECIPE, net: str = NET) -> Path:
    """Write ``edgeopt.toml``, ``net.py`` and the data set ``noise`` into a folder and return it."""
    dataset = folder / "noise"
    dataset.mkdir(parents=True)
    (dataset / "preprocess.py").write_text(PREPROCESS)
    (dataset / "calibration.toml").write_text('title = "noise"\nsource = "here"\nlicence = "none"\n')
    (folder / "net.py").write_text(net)
    (folder / "edgeopt.toml").write_text(recipe)
    return folder


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with edgeopt importable."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(more or {})}


def command(*arguments: str) -> list[str]:
    """Return the command line of edgeopt in this interpreter."""
    return [sys.executable, "-m", "edgeopt", *arguments]


def edgeopt_run(
    folder: Path, *arguments: str, variables: Mapping[str, str] | None = None, wrapper: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run edgeopt in a folder; ``wrapper`` is a command that takes another one as its arguments."""
    return subprocess.run(
        [*wrapper, *command(*arguments)],
        cwd=folder, env=environment(variables), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def bundle_files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a bundle by name."""
    assert json.loads((folder / "bundle.json").read_text())["schema_version"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
