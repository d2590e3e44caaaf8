"""Whole builds of chains: what each step made arrives in the bundle, and the bundle runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import edgeopt
from edgeopt.bundle.weight_buffers import read_constants
from edgeopt.errors import CompressionError
from edgeopt.pipeline import BuildResult

NET = """
from torch import nn

def build(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )

def wide():
    return build(16)
"""

SAMPLES = """
import numpy as np
from edgeopt.samples import Sample

class Patterns:
    def __init__(self, split):
        random = np.random.default_rng(0)
        patterns = random.standard_normal((10, 1, 8, 8))
        random = np.random.default_rng({"train": 1, "calibration": 2, "held_out": 3}[split])
        self.labels = np.arange({"train": 400, "calibration": 40, "held_out": 200}[split]) % 10
        noise = 0.8 * random.standard_normal((len(self.labels), 1, 8, 8))
        self.images = (patterns[self.labels] + noise).astype(np.float32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Sample(f"sample {index}", {"image": self.images[index : index + 1]}, int(self.labels[index]))

def open_dataset(split, inputs, options):
    return Patterns(split)
"""

RECIPE = """
[model]
factory = "net.py:build"
outputs = ["logits"]
[model.inputs.image]
shape = [1, 1, 8, 8]
[calibration]
dataset = "patterns"
num_samples = 40
num_held_out = 200
[latency]
compare = false
[parity]
min_sqnr_db = -40.0
min_cosine = -1.0
min_top1_agreement = 0.0
min_integer_coverage = 0.5
"""

TRAINING = {"batch_size": 50, "learning_rate": 0.01, "threads": 1, "validation_share": 0.0}
TRAIN = {"train": {**TRAINING, "epochs": 8}}
OUTLIER = 600.0
QUICK = {**TRAINING, "epochs": 3, "learning_rate": 0.003}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "patterns").mkdir()
    (folder / "patterns" / "preprocess.py").write_text(SAMPLES)
    (folder / "patterns" / "calibration.toml").write_text('title = "patterns"\nsource = "here"\nlicence = "none"\n')
    (folder / "net.py").write_text(NET)
    (folder / "my.toml").write_text(RECIPE)
    return folder


def build(project: Path, steps: list[dict[str, Any]], **values: object) -> BuildResult:
    """Build for arm64; all builds share one cache, so that the teacher is trained once."""
    overrides = {**TRAIN, "compress": steps, **{key.replace("__", "."): value for key, value in values.items()}}
    return edgeopt.build(project / "my.toml", out=project / "build", overrides=overrides)


def model_of(result: BuildResult) -> Path:
    return result.bundles[0].path / "model.tflite"


def accuracy_of(result: BuildResult) -> float:
    (output,) = result.bundles[0].report.outputs  # type: ignore[union-attr]
    assert output.accuracy is not None
    return output.accuracy


def test_build_keeps_what_every_step_made_when_all_are_in_one_chain(project: Path) -> None:
    steps = [
        {"method": "transfer", "arguments": {"width": 16}, "parameters": "partial"},
        {"method": "replace_activations", "activations": {"SiLU": "Hardswish"}},
        {"method": "finetune", **TRAINING, "epochs": 4},
        {"method": "factorize", "ranks": {"3": 8}, "layers": ["3"], "round_to": 4},
        {"method": "prune", "pruning_ratio": 0.5, "round_to": 4, "ignored_layers": ["3"]},
        {"method": "sparsify", "sparsity": 0.6, "finetune": QUICK},
        {"method": "share", "conv_values": 8, "linear_values": 8, "finetune": QUICK},
        {"method": "distill", **QUICK, "alpha": 0.5},
    ]
    off = {"quantize__weights": "per_tensor", "correct__equalize": "off", "correct__smooth": "off"}
    result = build(project, steps, **off)

    assert result.bundles[0].report is not None
    assert result.bundles[0].report.passed
    assert accuracy_of(result) > 0.6
    manifest = json.loads((result.bundles[0].path / "bundle.json").read_text())
    assert [step["name"] for step in manifest["recipe"]["compress"]] == [
        "transfer", "replace_activations", "finetune", "factorize", "prune", "sparsify", "share", "distill",
    ]  # fmt: skip
    assert set(manifest["history"]) == {"train", *(step["method"] for step in steps)}
    sizes = {name: report["after"]["num_macs"] for name, report in manifest["history"].items() if name != "train"}
    assert sizes["transfer"] > sizes["factorize"] > sizes["prune"] == sizes["distill"]
    constants = read_constants(model_of(result), model_of(result).read_bytes())
    weights = [
        torch.frombuffer(bytearray(found.content), dtype=torch.int8) for found in constants if found.item_bytes == 1
    ]
    # What is ones only is the mean, which is a convolution in the file.
    weights = [values for values in weights if len(values) > 60 and len(values.unique()) > 1]
    assert len(weights) == 5
    for values in weights:
        assert len(values.unique()) <= 8
        assert float((values == 0).float().mean()) >= 0.55


def test_build_learns_from_a_larger_network_when_it_is_named_as_a_teacher(project: Path) -> None:
    large = build(project, [{"method": "transfer", "factory": "net.py:wide", "parameters": "none"}, {
        "method": "finetune", **TRAINING, "epochs": 8,
    }])  # fmt: skip
    large_bytes = model_of(large).stat().st_size  # the next build takes its place
    step = next((project / "build" / ".cache").glob("finetune-*/weights.safetensors"))
    (project / "large.safetensors").write_bytes(step.read_bytes())
    teacher = {"factory": "net.py:wide", "weights": "large.safetensors"}
    steps = [
        {"method": "prune", "pruning_ratio": 0.5, "round_to": 4},
        {"method": "distill", **TRAINING, "epochs": 8, "teachers": [teacher], "own_teacher": False},
    ]
    small = build(project, steps)

    assert accuracy_of(small) > 0.6
    assert project / "large.safetensors" in small.inputs_read
    assert model_of(small).stat().st_size < large_bytes


def test_build_gains_in_the_bundle_when_the_student_was_rounded_while_it_learned(project: Path) -> None:
    trained = build(project, [])
    state = load_file(next((project / "build" / ".cache").glob("train-*/weights.safetensors")))
    # The same network in float: a channel behind ReLU is much larger, and what reads it as much smaller.
    state["3.weight"][0] *= OUTLIER
    state["3.bias"][0] *= OUTLIER
    state["7.weight"].view(10, 16, 4)[:, 0] /= OUTLIER
    save_file(state, project / "outlier.safetensors")
    start = {"method": "transfer", "weights": "outlier.safetensors"}
    corrections = dict.fromkeys(("equalize", "smooth", "clamp_masks", "correct_bias"), "off")
    off = {f"correct__{name}": value for name, value in corrections.items()}
    plain = build(project, [start], **off)
    learned = {"method": "distill", **TRAINING, "epochs": 8, "alpha": 0.5}
    exact = build(project, [start, learned], **off)
    rounded = build(project, [start, {**learned, "quantization_aware": "asymmetric"}], **off)

    # 97 % as float, 10 % as int8; distilled 52 %, and 64 % with rounding.
    assert accuracy_of(trained) - accuracy_of(plain) > 0.5
    assert accuracy_of(rounded) - accuracy_of(exact) > 0.05


def test_build_refuses_when_a_step_would_undo_an_earlier_one(project: Path) -> None:
    steps = [{"method": "sparsify", "sparsity": 0.5}, {"method": "factorize", "ranks": {"3": 4}, "layers": ["3"]}]
    with pytest.raises(CompressionError, match=r"\[factorize\] factorize would make new values of weight '3.weight'"):
        build(project, steps)
