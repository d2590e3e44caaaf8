"""What a target gains of weights that compression made sparse, shared or coarse: counted in the file that ships.

A mask that no kernel skips makes nothing faster, and a codebook that the quantizer spread over many integers makes
nothing smaller: both are said here, where they can be known.

Source for the pattern: NVIDIA TensorRT documentation, "Structured Sparsity".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file

from edgeopt.affine import INT4_MAX, MOST_BLOCK_FACTOR
from edgeopt.artifacts import TorchModel
from edgeopt.bundle.weight_buffers import read_constants
from edgeopt.compress.structure import LOW_BIT_KINDS, read_structure
from edgeopt.target import TargetSpec

_MOST_INT4_VALUES = 15
# What a number of 4 bits times the factor of its block can be; 57 of the 127 magnitudes of 8 bits cannot.
_IN_BLOCKS = np.unique(np.outer(range(INT4_MAX + 1), range(1, MOST_BLOCK_FACTOR + 1)))
_PACKED_ONLY = "they pay in the packed bundle only"


@dataclass(frozen=True)
class WeightGain:
    """What became of all weights of one kind; counts are of the file.

    ``is_kept`` says whether the file still has what compression made, ``is_executed`` whether a kernel of the target
    does less for it, and ``remark`` both in words.
    """

    kind: str
    num_layers: int
    num_weights: int
    num_zeros: int
    most_values: int
    is_kept: bool
    is_executed: bool
    remark: str


@dataclass(frozen=True)
class _Made:
    """One weight as compression left it."""

    kind: str
    num_weights: int
    num_zeros: int
    num_values: int


@dataclass(frozen=True)
class _Stored:
    """One weight as the file has it."""

    is_packed: bool
    num_zeros: int
    num_values: int
    is_two_of_four: bool
    is_in_blocks: bool


def weight_gains(network: TorchModel, model: Path, spec: TargetSpec) -> tuple[WeightGain, ...]:
    """Compare the constrained weights of a network with the file that was made from it.

    A weight is found by its size; of several of one size, the one with the fewest values stands for the one that had
    the fewest. Weights that the file does not hold in a size of its own are left out.
    """
    made = _made(network)
    if not made:
        return ()
    pairs = _paired(made, _stored(model))
    kinds = dict.fromkeys(weight.kind for weight, _ in pairs)
    return tuple(_gain(kind, [pair for pair in pairs if pair[0].kind == kind], spec) for kind in kinds)


def _gain(kind: str, pairs: Sequence[tuple[_Made, _Stored]], spec: TargetSpec) -> WeightGain:
    """Sum up the weights of one kind."""
    is_kept = all(_is_kept(made, stored, spec) for made, stored in pairs)
    is_packed = kind in LOW_BIT_KINDS and all(stored.is_packed for _, stored in pairs)
    gain = WeightGain(
        kind=kind,
        num_layers=len(pairs),
        num_weights=sum(made.num_weights for made, _ in pairs),
        num_zeros=sum(stored.num_zeros for _, stored in pairs),
        most_values=max(stored.num_values for _, stored in pairs),
        is_kept=is_kept,
        is_executed=is_kept and (is_packed or kind in spec.sparse_kernels),
        remark="",
    )
    return replace(gain, remark=_remark(gain, max(made.num_values for made, _ in pairs), spec.name))


def _remark(gain: WeightGain, values_before: int, target: str) -> str:
    """Say what the target gains."""
    if not gain.is_kept:
        if gain.kind in ("sparse", "2:4"):
            return f"the zeros of {gain.kind} weights are not all where they were: no kernel skips the others"
        return f"{gain.kind} weights lost their few values: {values_before} at most became {gain.most_values}"
    zeros = f"{gain.num_zeros / gain.num_weights:.1%} zeros"
    pattern = " in the pattern 2:4" if gain.kind == "2:4" else ""
    match gain.kind, gain.is_executed:
        case (("sparse" | "2:4"), True):
            return f"{zeros}{pattern}: kernels of {target} skip them"
        case (("sparse" | "2:4"), False):
            return f"{zeros}{pattern}: no kernel of {target} skips them; {_PACKED_ONLY}"
        case "shared", _:
            few = f"{zeros}, at most {gain.most_values} values a weight"
            return f"{few}: no kernel of {target} reads a codebook; {_PACKED_ONLY}"
        case _, True:
            return f"{gain.num_weights:,} {gain.kind} weights in 4 bits: kernels of {target} read them so"
    return (
        f"{gain.num_weights:,} {gain.kind} weights in 8 bits: not all have a kernel of {target} for 4; {_PACKED_ONLY}"
    )


def _is_kept(made: _Made, stored: _Stored, spec: TargetSpec) -> bool:
    if made.kind == "2:4" and made.kind in spec.sparse_kernels:
        return stored.is_two_of_four
    if made.kind in ("sparse", "2:4"):  # where no kernel wants the pattern, its zeros are zeros
        return stored.num_zeros >= made.num_zeros
    if made.kind == "block_int4":
        return stored.is_in_blocks
    return stored.num_values <= (_MOST_INT4_VALUES if made.kind in LOW_BIT_KINDS else made.num_values)


def _made(network: TorchModel) -> list[_Made]:
    """Return the constrained weights of a network; without a structure of its own it has none."""
    constraints = read_structure(network.structure).constraints
    weights = load_file(network.weights) if constraints and network.weights is not None else {}
    found = []
    for name, constraint in constraints.items():
        weight = weights[name]
        kinds = {str(constraint.get("pattern", constraint["kind"])), str(constraint["kind"])}
        zeros, num_values = int((weight == 0).sum()), len(np.unique(weight))
        # A pattern says all of its zeros, and its zeros nothing about few values.
        stated = sorted(kinds - {"sparse"} if len(kinds) > 1 else kinds)
        found += [_Made(kind, weight.size, zeros, num_values) for kind in stated]
    return found


def _paired(made: Sequence[_Made], stored: dict[int, list[_Stored]]) -> list[tuple[_Made, _Stored]]:
    """Return each constrained weight with the constant that it became."""
    pairs: list[tuple[_Made, _Stored]] = []
    for kind, size in dict.fromkeys((weight.kind, weight.num_weights) for weight in made):
        same = (weight for weight in made if (weight.kind, weight.num_weights) == (kind, size))
        ours = sorted(same, key=lambda weight: weight.num_values)
        theirs = sorted(stored.get(size, []), key=lambda weight: weight.num_values)
        pairs += zip(ours, theirs, strict=False)
    return pairs


def _stored(model: Path) -> dict[int, list[_Stored]]:
    """Return the weights of a file by how many they are."""
    content = model.read_bytes()
    patterned = set(_two_of_four(content)) if model.suffix == ".onnx" else set()
    found: dict[int, list[_Stored]] = {}
    for constant in read_constants(model, content):
        if constant.num_weights:
            values = _values(constant.content, constant.dtype, constant.item_bytes, constant.num_weights)
            zeros = int((values == 0).sum())
            different = np.unique(values)
            is_in_blocks = bool(np.isin(np.abs(different.astype(np.float64)), _IN_BLOCKS).all())
            is_patterned = constant.name in patterned
            stored = _Stored("int4" in constant.dtype, zeros, len(different), is_patterned, is_in_blocks)
            found.setdefault(constant.num_weights, []).append(stored)
    return found


def _values(content: bytes, dtype: str, item_bytes: int, count: int) -> NDArray[np.generic]:
    """Return a constant's items as integers of their size, those of 4 bits one by one."""
    if "int4" in dtype:
        halves = np.frombuffer(content, np.uint8)
        return np.stack([halves & 15, halves >> 4], axis=1).reshape(-1)[:count]
    return np.frombuffer(content, f"<i{item_bytes}")


def _two_of_four(content: bytes) -> Iterator[str]:
    """Yield the names of an ONNX file's int8 weights that have two zeros in every four input channels."""
    graph = onnx.load_model_from_string(content).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name = dequantized.get(node.input[1], "")
        if name not in constants:
            continue
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        axis = 1 if node.op_type == "Conv" or transposed else 0
        weight = np.moveaxis(numpy_helper.to_array(constants[name]), axis, -1)
        if weight.shape[-1] % 4 == 0 and (np.count_nonzero(weight.reshape(-1, 4), axis=1) <= 2).all():
            yield name
