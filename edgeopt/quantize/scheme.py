"""What the targets' kernels ask of scales: the two schemes, and which operators run on integers.

Both schemes read the same :class:`~edgeopt.artifacts.Ranges`; a scheme only decides how a range becomes numbers.

Source: LiteRT 8-bit quantization specification (fixed output scales, operators that keep their input's scale);
NVIDIA TensorRT documentation, "Working with Quantized Types" (symmetric activations, float bias).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from edgeopt.affine import INT8_MAX, QuantParams, asymmetric_int8, symmetric_int8
from edgeopt.errors import TargetError, did_you_mean
from edgeopt.settings import QuantizeSettings


class Family(Enum):
    """How an operator treats the scales of its inputs and outputs."""

    WEIGHTED = "multiplies by constant weights, which are quantized per channel"
    RESCALING = "reads and writes tensors that each have a scale of their own"
    KEEPING = "moves values without changing them, so its output has its input's scale"
    JOINING = "needs one scale for all of its inputs and its output"


@dataclass(frozen=True)
class Placement:
    """How one operator type is quantized: its family, and which inputs are activations (``None``: all)."""

    family: Family
    activations: tuple[int, ...] | None = (0,)


@dataclass(frozen=True)
class Scheme:
    """One set of rules for turning ranges into scales.

    ``activation_params`` turns a range into 8 bits; 16 bits are symmetric in every scheme.
    ``outputs`` says whether results are quantized too (a kernel that writes integers) or only what is read.
    ``fuses_residual``: a sum is fused with the convolution that feeds it, so only its other input is quantized.
    ``weight_axes`` is the axis of per-channel weights by operator; one that is not there has one scale for all.
    ``largest_weight`` is the integer that a channel's largest magnitude becomes.
    """

    name: str
    activation_params: Callable[[float, float], QuantParams]
    operators: Mapping[str, Placement]
    fixed_outputs: Mapping[str, QuantParams]
    weight_axes: Mapping[str, int]
    integer_bias: bool
    outputs: bool
    fuses_residual: bool = False
    largest_weight: int = INT8_MAX


_WEIGHTED = Placement(Family.WEIGHTED)
_UNARY = Placement(Family.RESCALING)
_BINARY = Placement(Family.RESCALING, None)
_KEEPING = Placement(Family.KEEPING)

_COMMON = {
    "Conv": _WEIGHTED,
    "ConvTranspose": _WEIGHTED,
    "Gemm": _WEIGHTED,
    "MatMul": _WEIGHTED,
    "Add": _BINARY,
    "AveragePool": _UNARY,
    "GlobalAveragePool": _UNARY,
    "MaxPool": _KEEPING,
}

_INTEGER_EVERYWHERE = _COMMON | {
    "Sub": _BINARY,
    "Mul": _BINARY,
    "Relu": _UNARY,
    "Clip": _UNARY,
    "LeakyRelu": _UNARY,
    "Sigmoid": _UNARY,
    "Tanh": _UNARY,
    "HardSwish": _UNARY,
    "Softmax": _UNARY,
    "Reshape": _KEEPING,
    "Flatten": _KEEPING,
    "Squeeze": _KEEPING,
    "Unsqueeze": _KEEPING,
    "Transpose": _KEEPING,
    "Slice": _KEEPING,
    "Gather": _KEEPING,
    "Pad": _KEEPING,
    "DepthToSpace": _KEEPING,
    "SpaceToDepth": _KEEPING,
    "Split": _KEEPING,
    "Identity": _KEEPING,
    "Expand": _KEEPING,
    "Tile": _KEEPING,
    "ReduceMax": _KEEPING,
    "ReduceMin": _KEEPING,
    "Resize": _KEEPING,  # to nearest neighbours; a linear one has a scale of its own
    "Concat": Placement(Family.JOINING, None),
}

ASYMMETRIC = Scheme(
    name="asymmetric",
    activation_params=asymmetric_int8,
    operators=MappingProxyType(_INTEGER_EVERYWHERE),
    fixed_outputs=MappingProxyType(
        {
            "Softmax": QuantParams(1 / 256, -128),
            "Sigmoid": QuantParams(1 / 256, -128),
            "Tanh": QuantParams(1 / 128, 0),
        }
    ),
    weight_axes=MappingProxyType({"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": -1}),
    integer_bias=True,
    outputs=True,
)

# TensorRT fuses by pattern: it wants Q/DQ in front of what it can run on int8, and nothing behind it.
SYMMETRIC = Scheme(
    name="symmetric",
    activation_params=symmetric_int8,
    operators=MappingProxyType(_COMMON),
    fixed_outputs=MappingProxyType({}),
    # TensorRT knows no output-channel scales for a transposed convolution (TensorRT#1694, #2380).
    weight_axes=MappingProxyType({"Conv": 0, "Gemm": 0, "MatMul": -1}),
    integer_bias=False,
    outputs=False,
    fuses_residual=True,
)

SCHEMES = MappingProxyType({scheme.name: scheme for scheme in (ASYMMETRIC, SYMMETRIC)})


# Two products of uint8 and int8 are added in 16 bits by VPMADDUBSW (AVX2 without VNNI): 2 * 255 * 64 still fits.
REDUCED_WEIGHT = 64


def adapted(scheme: Scheme, settings: QuantizeSettings) -> Scheme:
    """Return a scheme with what a recipe asks of weights: one scale a tensor, 7 bits."""
    if settings.weights == "per_tensor":
        scheme = replace(scheme, weight_axes=MappingProxyType({}))
    return replace(scheme, largest_weight=REDUCED_WEIGHT) if settings.reduce_range else scheme


def scheme_named(name: str) -> Scheme:
    """Return a scheme by the name that ``target.toml`` uses.

    Raises:
        TargetError: if there is none.
    """
    if name not in SCHEMES:
        raise TargetError(f"unknown scheme {name!r}", hint=did_you_mean(name, list(SCHEMES)))
    return SCHEMES[name]
