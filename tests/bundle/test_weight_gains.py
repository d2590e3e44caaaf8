"""What a file still has of weights that were made sparse, shared or coarse, and what the target gains of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from float_graphs import node, write_graph
from safetensors.numpy import save_file
from tiny_project import RECIPE, edgeopt_run, write_project

from edgeopt.artifacts import QdqModel, Ranges, TensorRange, TorchModel
from edgeopt.bundle.lost_weights import lost_weights
from edgeopt.bundle.weight_buffers import read_constants
from edgeopt.bundle.weight_gains import WeightGain, weight_gains
from edgeopt.compress.projection import block_int4
from edgeopt.compress.structure import Constraint, Structure
from edgeopt.quantize.qdq import quantize
from edgeopt.quantize.scheme import SYMMETRIC, scheme_named
from edgeopt.settings import CorrectSettings, QuantizeSettings
from edgeopt.target import find_target
from edgeopt.targets.arm64.int4 import pack_weights
from edgeopt.tflite.lower import lower

RANDOM = np.random.default_rng(0)
CODEBOOK = np.array([-0.9, -0.35, 0.0, 0.2, 1.1], np.float32)
SHARED = CODEBOOK[RANDOM.integers(0, 5, (16, 24))]
SHARED[:8] = np.where(SHARED[:8] > 0.5, np.float32(0.2), SHARED[:8])  # no two channels have one largest magnitude
PATTERN = RANDOM.standard_normal((16, 24)).astype(np.float32) * np.tile([1, 0, 0, 1], 6).astype(np.float32)


def file_of(
    folder: Path, weight: np.ndarray, target: str, weights: str = "per_channel", batch_norm: bool = False
) -> Path:
    """Return the model file of one layer with a weight, behind which a batch norm was folded, as a target wants it."""
    if batch_norm:
        weight = weight * RANDOM.uniform(0.5, 2.0, (16, 1)).astype(np.float32)
    source = write_graph(folder, [node("Gemm", "x w", "y", transB=1)], {"w": weight}, (2, 24))
    described = onnx.load(str(source.path)).graph
    names = [value.name for value in (*described.input, *described.value_info, *described.output)]
    ranges = Ranges(source.path, {name: TensorRange(-9.0, 9.0) for name in names}, 1)
    scheme = SYMMETRIC if target == "cuda" else scheme_named("asymmetric")
    made: QdqModel = quantize(source, ranges, scheme, QuantizeSettings(weights=weights), folder)  # type: ignore[arg-type]
    if find_target(target).model_format == "onnx":
        return made.path
    graph = ir.load(made.path)
    if target == "arm64":
        pack_weights(graph)
    (folder / "model.tflite").write_bytes(lower(graph))
    return folder / "model.tflite"


def network(folder: Path, weight: np.ndarray, constraint: Constraint) -> TorchModel:
    made = TorchModel(folder / "structure.json", folder / "weights.safetensors")
    Structure(constraints={"layer.weight": constraint}).write(made.structure)
    save_file({"layer.weight": weight}, made.weights)
    return made


def gain_of(folder: Path, weight: np.ndarray, constraint: Constraint, target: str, **how: object) -> WeightGain:
    model = file_of(folder, weight, target, **how)  # type: ignore[arg-type]
    (gain,) = weight_gains(network(folder, weight, constraint), model, find_target(target))
    return gain


def stored_values(model: Path, size: int = 384) -> int:
    """Return how many different int8 values the one weight of a size has in a file."""
    (found,) = [item for item in read_constants(model, model.read_bytes()) if item.num_weights == size]
    return len(np.unique(np.frombuffer(found.content, np.int8)))


def test_few_values_stay_few_in_the_tflite_file_when_the_scale_is_one(tmp_path: Path) -> None:
    gain = gain_of(tmp_path, SHARED, {"kind": "shared"}, "arm64", weights="per_tensor")

    assert stored_values(tmp_path / "model.tflite") == 5
    assert (gain.is_kept, gain.is_executed, gain.most_values) == (True, False, 5)
    assert gain.num_zeros == int((SHARED == 0).sum())
    assert gain.remark.endswith(
        "values a weight: no kernel of arm64 reads a codebook; they pay in the packed bundle only"
    )
    assert list(lost_weights([vars(gain)], QuantizeSettings(), CorrectSettings())) == []


@pytest.mark.parametrize("target", ["arm64", "cuda"])
def test_a_pattern_and_few_bits_of_one_weight_are_both_reported(tmp_path: Path, target: str) -> None:
    weight = np.sign(PATTERN).astype(np.float32) * RANDOM.uniform(0.1, 1, (16, 1)).astype(np.float32)
    made = network(tmp_path, weight, {"kind": "ternary", "pattern": "2:4", "axis": 0, "keeps_zeros": True})
    gains = weight_gains(made, file_of(tmp_path, weight, target), find_target(target))
    assert [(gain.kind, gain.is_kept) for gain in gains] == [("2:4", True), ("ternary", True)]
    assert [gain.is_executed for gain in gains] == ([False, True] if target == "arm64" else [True, False])


def test_few_values_become_many_when_scales_or_batch_norms_are_by_channel(tmp_path: Path) -> None:
    by_channel = gain_of(tmp_path, SHARED, {"kind": "shared"}, "arm64")
    assert stored_values(tmp_path / "model.tflite") > 5
    (warning,) = lost_weights([vars(by_channel)], QuantizeSettings(), CorrectSettings(equalize="off", smooth="off"))
    assert warning.startswith("shared weights lost their few values: 5 at most became ")
    assert warning.endswith("write weights = 'per_tensor' under [quantize]")

    folded = gain_of(tmp_path, SHARED, {"kind": "shared"}, "arm64", weights="per_tensor", batch_norm=True)
    assert not folded.is_kept
    plan = QuantizeSettings(weights="per_tensor")
    (warning,) = lost_weights([vars(folded)], plan, CorrectSettings(equalize="off", smooth="off"))
    assert warning.endswith("a batch norm behind them scales each channel")


def test_zeros_pay_in_the_packed_bundle_only_when_no_kernel_skips_them(tmp_path: Path) -> None:
    weight = np.where(np.abs(PATTERN) < 1, 0, PATTERN).astype(np.float32)
    for target in ("arm64", "x86", "cuda"):
        gain = gain_of(tmp_path, weight, {"kind": "sparse"}, target)
        share = f"{gain.num_zeros / 384:.1%}"
        assert gain.remark == f"{share} zeros: no kernel of {target} skips them; they pay in the packed bundle only"
        assert (gain.is_kept, gain.is_executed) == (True, False)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_two_of_four_is_found_in_the_exported_graph_when_the_target_skips_it(tmp_path: Path, batch_norm: bool) -> None:
    constraint = {"kind": "sparse", "pattern": "2:4"}
    gain = gain_of(tmp_path, PATTERN, constraint, "cuda", batch_norm=batch_norm)
    assert (gain.is_kept, gain.is_executed) == (True, True)
    assert gain.remark.endswith("% zeros in the pattern 2:4: kernels of cuda skip them")
    assert 192 <= gain.num_zeros < 200  # rounding adds some

    weight = np.roll(PATTERN, 1, axis=1)  # two zeros of four still
    weight[5, 4:8] = [1, 1, 1, 0]
    broken = gain_of(tmp_path, weight, constraint, "cuda", batch_norm=batch_norm)
    assert (broken.is_kept, broken.is_executed) == (False, False)
    assert broken.remark.startswith("the zeros of 2:4 weights are not all where they were")
    (warning,) = lost_weights([vars(broken)], QuantizeSettings(), CorrectSettings(rounding="learned"))
    assert warning.endswith("write rounding = 'nearest' under [correct]")


@pytest.mark.parametrize(
    ("target", "is_executed", "text"),
    [
        ("arm64", True, "384 ternary weights in 4 bits: kernels of arm64 read them so"),
        ("x86", False, "384 ternary weights in 8 bits: not all have a kernel of x86 for 4"),
    ],
)
def test_coarse_weights_are_executed_where_a_kernel_reads_them(
    tmp_path: Path, target: str, is_executed: bool, text: str
) -> None:
    scales = RANDOM.uniform(0.1, 1, (16, 1)).astype(np.float32)
    ternary = np.sign(PATTERN).astype(np.float32) * scales
    gain = gain_of(tmp_path, ternary, {"kind": "ternary"}, target)
    assert (gain.is_kept, gain.is_executed, gain.most_values) == (True, is_executed, 3)
    assert gain.remark.startswith(text)


@pytest.mark.parametrize("target", ["arm64", "x86"])
def test_weights_in_blocks_are_stored_as_they_are_and_executed_in_eight_bits(tmp_path: Path, target: str) -> None:
    scales = RANDOM.uniform(0.1, 1, (16, 1)).astype(np.float32)
    weight = (block_int4(torch.from_numpy(PATTERN)[:, None], 8)[:, 0].numpy() * scales).astype(np.float32)
    constraint = {"kind": "block_int4", "axis": 0, "keeps_zeros": False, "block_size": 8}
    gain = gain_of(tmp_path, weight, constraint, target)
    assert (gain.is_kept, gain.is_executed) == (True, False)
    assert gain.remark.startswith(f"384 block_int4 weights in 8 bits: not all have a kernel of {target} for 4")

    lost = gain_of(tmp_path, weight, constraint, target, weights="per_tensor")
    assert not lost.is_kept
    (warning,) = lost_weights([vars(lost)], QuantizeSettings(weights="per_tensor"), CorrectSettings(equalize="off"))
    assert "write weights = 'per_channel'" in warning


def test_a_network_without_constraints_gains_nothing(tmp_path: Path) -> None:
    assert weight_gains(TorchModel(), file_of(tmp_path, SHARED, "x86"), find_target("x86")) == ()


CHAIN = """
[[compress]]
method = "sparsify"
sparsity = 0.5
[[compress]]
method = "share"
conv_values = 8
linear_values = 4
"""
NO_BATCH_NORM = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )
"""


def test_build_says_what_the_target_gains_when_weights_are_sparse_and_shared(tmp_path: Path) -> None:
    recipe = RECIPE + CHAIN + '[quantize]\nweights = "per_tensor"\n[correct]\nequalize = "off"\n'
    folder = write_project(tmp_path / "project", recipe=recipe, net=NO_BATCH_NORM)
    done = edgeopt_run(folder, "build", "--target", "arm64", "--allow-slower")
    assert done.returncode == 0, done.stderr
    (gain,) = json.loads((folder / "build/edgeopt/arm64/bundle.json").read_text())["weights"]

    assert stored_values(folder / "build/edgeopt/arm64/model.tflite", 216) == 8
    assert (gain["num_layers"], gain["num_weights"], gain["num_zeros"], gain["most_values"]) == (2, 248, 124, 8)
    assert "50.0% zeros, at most 8 values a weight: no kernel of arm64 reads a codebook" in done.stdout
    assert gain["remark"] in (folder / "build/edgeopt/arm64/README.md").read_text()
