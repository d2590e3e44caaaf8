"""Networks that take token ids and masks: integers go from the samples into the device as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_project import write_project

import edgeopt
from edgeopt.errors import DataError, ModelError
from edgeopt.tflite.inspect import read_tflite

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(20, 16)
        self.inside = torch.nn.Linear(16, 32)
        self.head = torch.nn.Linear(32, 4)

    def forward(self, ids, mask):
        hidden = torch.relu(self.inside(self.words(ids)))
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))

def build():
    return Net()
"""

PREPROCESS = """
import numpy as np
from edgeopt.samples import Sample

SEEDS = {"calibration": 1000, "held_out": 2000}

class Texts:
    def __init__(self, split, ids):
        self.seed, self.ids = SEEDS[split], ids
    def __len__(self):
        return 16
    def __getitem__(self, index):
        random = np.random.default_rng(self.seed + index)
        mask = np.arange(6)[np.newaxis] < random.integers(2, 7)
        ids = random.integers(0, 20, (1, 6)).astype(self.ids)
        return Sample(str(index), {"ids": ids, "mask": mask.astype("int32")})

def open_dataset(split, inputs, options):
    return Texts(split, options.get("ids", inputs["ids"].dtype))
"""

RECIPE = """
[model]
factory = "net.py:build"
outputs = ["logits"]
[model.inputs.ids]
shape = [1, 6]
dtype = "int64"
layout = "any"
[model.inputs.mask]
shape = [1, 6]
dtype = "int32"
layout = "any"
[calibration]
dataset = "noise"
num_samples = 8
num_held_out = 8
num_golden = 4
[latency]
compare = false
"""


def text_project(folder: Path) -> Path:
    write_project(folder, recipe=RECIPE, net=NET)
    (folder / "noise/preprocess.py").write_text(PREPROCESS)
    return folder / "edgeopt.toml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles of a network with two integer inputs, its products quantized while it runs."""
    folder = tmp_path_factory.mktemp("texts")
    result = edgeopt.build(
        text_project(folder),
        targets=("arm64", "x86"),
        out=folder / "build",
        overrides={"quantize.precision": "dynamic"},
    )
    return {bundle.target: bundle.path for bundle in result.bundles}


def test_manifest_gives_integer_inputs_no_scale_when_they_are_declared(built: dict[str, Path]) -> None:
    for path in built.values():
        inputs = json.loads((path / "bundle.json").read_text())["inputs"]
        assert [(facts["name"], facts["dtype"], facts["scale"]) for facts in inputs] == [
            ("ids", "int64", None), ("mask", "int32", None),
        ]  # fmt: skip
        with np.load(path / "golden.npz") as golden:
            assert (golden["input/ids"].dtype, golden["input/mask"].dtype) == (np.int64, np.int32)


def test_bundle_runs_its_own_test_when_inputs_are_integers(built: dict[str, Path]) -> None:
    for path in built.values():
        run = subprocess.run([sys.executable, path / "run_parity.py"], capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "passed"), run.stdout + run.stderr


def test_files_for_devices_take_the_integers_when_they_are_declared(built: dict[str, Path]) -> None:
    file = read_tflite((built["arm64"] / "model.tflite").read_bytes())
    assert {name: tensor.dtype for name, tensor in file.inputs.items()} == {"ids": "int64", "mask": "int32"}
    (source,) = (built["arm64"] / "firmware").glob("*_model.c")
    assert "EDGEOPT_INT64" in source.read_text()
    assert "| in | ids | int64 | 1 x 6 | any |  |  |" in (built["arm64"] / "README.md").read_text()


def test_verdict_holds_outputs_to_dynamic_steps_when_a_node_before_them_is_dynamic(built: dict[str, Path]) -> None:
    manifest = json.loads((built["arm64"] / "bundle.json").read_text())
    assert [facts["is_dynamic"] for facts in manifest["outputs"]] == [True]
    assert (manifest["limits"]["max_steps"], manifest["integer_coverage"]) == (12, 1.0)


def test_build_runs_on_static_integers_when_inputs_are_token_ids(tmp_path: Path) -> None:
    (bundle,) = edgeopt.build(text_project(tmp_path), out=tmp_path / "build").bundles
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    assert [facts["is_dynamic"] for facts in manifest["outputs"]] == [False]
    assert (manifest["limits"]["max_steps"], manifest["integer_coverage"]) == (2, 1.0)


def test_build_refuses_samples_when_their_integers_have_another_width(tmp_path: Path) -> None:
    overrides = {"calibration.options.ids": "int32"}
    with pytest.raises(DataError, match=r"input 'ids' is int32\[1, 6\], expected int64\[1, 6\]"):
        edgeopt.build(text_project(tmp_path), out=tmp_path / "build", overrides=overrides)


def test_build_refuses_an_exported_program_when_it_takes_other_integers(tmp_path: Path) -> None:
    import torch

    recipe = text_project(tmp_path)
    names: dict[str, object] = {}
    exec(NET, names)
    inputs = (torch.zeros(1, 6, dtype=torch.int32), torch.zeros(1, 6, dtype=torch.int32))
    torch.export.save(torch.export.export(names["build"](), inputs), tmp_path / "net.pt2")  # type: ignore[operator]
    recipe.write_text(RECIPE.replace('factory = "net.py:build"', 'path = "net.pt2"'))
    with pytest.raises(ModelError, match="input 'ids' is int32, the recipe says int64") as caught:
        edgeopt.build(recipe, out=tmp_path / "build")
    assert "write dtype = 'int32'" in str(caught.value.hint)
