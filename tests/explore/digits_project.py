"""A family of tiny networks on scikit-learn's digits: each is built in seconds, and a larger one learns more."""

from __future__ import annotations

from pathlib import Path

NET = """
import torch
from torch import nn

def build(width=1.0, depth=1, kernel=3):
    if depth > 2:
        raise ValueError(f"depth is at most 2, got {depth}")
    torch.manual_seed(0)
    channels, layers, before = max(4, round(16 * width)), [], 1
    for _ in range(depth):
        layers += [nn.Conv2d(before, channels, kernel, padding=kernel // 2), nn.BatchNorm2d(channels), nn.ReLU()]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))
"""

# Of each five digits two are held out; a picture of 4 x 4 pixels has the means of four each.
PREPROCESS = """
import numpy as np
from pathlib import Path
from edgeopt.provenance import locate
from edgeopt.samples import Sample

ROWS = {"train": (0, 1, 2), "calibration": (0,), "held_out": (3, 4)}

class Digits:
    def __init__(self, split, size):
        table = np.loadtxt(locate("sklearn:datasets/data/digits.csv.gz", Path()), delimiter=",")
        images, labels = table[:, :-1], table[:, -1]
        self.rows = [row for row in range(len(labels)) if row % 5 in ROWS[split]]
        step = 8 // size
        pooled = images.reshape(-1, size, step, size, step).mean(axis=(2, 4)) / 16
        self.images, self.labels = pooled.astype(np.float32), labels
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, index):
        row = self.rows[index]
        return Sample(f"digits/{row}", {"image": self.images[row][None, None]}, int(self.labels[row]))

def open_dataset(split, inputs, options):
    return Digits(split, inputs["image"].shape[-1])
"""

RECIPE = """
[model]
factory = "net.py:build"
outputs = ["logits"]
[model.inputs.image]
shape = [1, 1, 8, 8]
[calibration]
dataset = "digits"
num_samples = 32
num_held_out = 200
num_golden = 2
[train]
epochs = 2
batch_size = 64
learning_rate = 0.02
threads = 1
[parity]
min_top1_agreement = 0.5
min_sqnr_db = 0.0
min_cosine = 0.5
min_integer_coverage = 0.5
[search]
budget = { num_macs = 60000 }
trials = 4
[search.space]
"model.arguments.width" = "0.25:1.5"
"model.arguments.kernel" = [1, 3]
"""


def write_digits_project(folder: Path, *, recipe: str = RECIPE) -> Path:
    """Write ``edgeopt.toml``, ``net.py`` and the data set ``digits`` into a folder and return it."""
    dataset = folder / "digits"
    dataset.mkdir(parents=True)
    (dataset / "preprocess.py").write_text(PREPROCESS)
    (dataset / "calibration.toml").write_text('title = "digits"\nsource = "scikit-learn"\nlicence = "BSD-3"\n')
    (folder / "net.py").write_text(NET)
    (folder / "edgeopt.toml").write_text(recipe)
    return folder
