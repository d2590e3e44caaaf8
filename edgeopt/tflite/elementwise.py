"""Operators on several operands, element by element with broadcasting: arithmetic, comparison, logic, choice."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.broadcasting import MAX_RANK, in_few_axes
from edgeopt.tflite.program import RefusedError, Tensor
from edgeopt.tflite.step import Lower, Step

_MAX_RATIO = 256  # of an operand's scale to the result's
_MAX_CHOICE_RANK = 5  # SELECT_V2's


def arithmetic(builtin: str, options_type: Any) -> Lower:
    """Return the lowering of one of ADD, SUB, MUL and DIV."""

    def lower(step: Step) -> Tensor:
        operands = _operands(step)
        if _is_plain_int8(step):
            return _widened(step, builtin)
        options = options_type()
        options.fusedActivationFunction = step.activation
        if step.data.dtype == np.int16 and builtin != "MUL":
            options.potScaleInt16 = False  # any scale, not only powers of two
        in_int8 = step.is_integer and step.data.dtype == np.int8
        if in_int8:
            _check_scales(step, builtin)
        version = 3 if builtin == "MUL" and in_int8 and _multiplier(step) >= 1 else None
        return step.emitter.emit(builtin, list(operands), step.output, options, version=version)

    return in_few_axes(lower)


def _operands(step: Step) -> list[Tensor]:
    operands = [step.operand(index) for index in range(len(step.inputs))]
    if len({tensor.shape for tensor in operands}) > 1 and len(step.output.shape) > MAX_RANK:
        raise RefusedError(f"broadcasting over {len(step.output.shape)} axes, expected at most {MAX_RANK}")
    return operands


def _is_plain_int8(step: Step) -> bool:
    """Whether the operands are int8 numbers as they are, for which kernels that know scales are not made."""
    return not step.is_integer and step.data.dtype == np.int8


def _widened(step: Step, builtin: str) -> Tensor:
    """Compute on int32, where no result is lost, and wrap around at the end as ONNX does."""
    wide = [step.emitter.cast(tensor, np.int32) for tensor in _operands(step)]
    return step.emitter.cast(step.emitter.apply(builtin, *wide), np.int8, step.output)


def _check_scales(step: Step, builtin: str) -> None:
    """Refuse scales that XNNPACK leaves to LiteRT's own kernel, which rounds otherwise, and aborts on some.

    Source: LiteRT's tflite/delegates/xnnpack/xnnpack_delegate.cc, CheckTensorsInputOutputScale and its sister.
    """
    output = step.output.per_tensor.scale
    each = [step.operand(index).per_tensor.scale / output for index in range(2)]
    ratios, least = ([_multiplier(step)], 2**-16) if builtin == "MUL" else (each, 2**-10)
    if not all(least <= ratio < _MAX_RATIO for ratio in ratios):
        raise RefusedError(f"scales of operands and result that are {max(ratios):.3g} and {min(ratios):.3g} to 1")


def _multiplier(step: Step) -> float:
    left, right = step.operand(0).per_tensor.scale, step.operand(1).per_tensor.scale
    return left * right / step.output.per_tensor.scale


add = arithmetic("ADD", schema.AddOptionsT)
subtract = arithmetic("SUB", schema.SubOptionsT)
multiply = arithmetic("MUL", schema.MulOptionsT)
divide = arithmetic("DIV", schema.DivOptionsT)


COMPARISONS = {
    "And": "LOGICAL_AND", "Equal": "EQUAL", "Greater": "GREATER", "GreaterOrEqual": "GREATER_EQUAL", "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL", "Or": "LOGICAL_OR", "Xor": "NOT_EQUAL",
}  # fmt: skip


def comparison(builtin: str) -> Lower:
    """Return the lowering of a comparison or of a logical operator: the result is bool."""

    def lower(step: Step) -> Tensor:
        operands = _operands(step)
        if _is_plain_int8(step):
            operands = [step.emitter.cast(tensor, np.int32) for tensor in operands]
        return step.emitter.emit(builtin, list(operands), step.output)

    return in_few_axes(lower)


def folded(builtin: str) -> Lower:
    """Return the lowering of an operator on any number of operands: one kernel between each two."""

    def lower(step: Step) -> Tensor:
        operands = _operands(step)
        if len(operands) == 1:
            return step.emitter.reshape(step.data, step.output.shape, step.output)
        return reduce(lambda left, right: step.emitter.apply(builtin, left, right), operands)

    return in_few_axes(lower)


def mean_of_operands(step: Step) -> Tensor:
    """Lower Mean, of several tensors."""
    total = folded("ADD")(step)
    return step.emitter.apply("DIV", total, step.emitter.number(len(step.inputs), total))


@in_few_axes
def where(step: Step) -> Tensor:
    """Lower Where."""
    if len(step.output.shape) > _MAX_CHOICE_RANK:
        raise RefusedError(f"choosing over {len(step.output.shape)} axes, expected at most {_MAX_CHOICE_RANK}")
    operands: list[Tensor | None] = [step.operand(index) for index in range(3)]
    return step.emitter.emit("SELECT_V2", operands, step.output, data=1)


@in_few_axes
def power(step: Step) -> Tensor:
    """Lower Pow; the exponent is brought to the base's dtype if that loses nothing."""
    base, exponent = step.operand(0), step.operand(1)
    if exponent.dtype != base.dtype and base.dtype != np.float32:
        raise RefusedError(f"a power of {base.dtype} with an exponent of {exponent.dtype}")
    if base.dtype == np.int32 and (exponent.data is None or (exponent.data < 0).any()):
        raise RefusedError("a power of int32 whose exponent may be negative")
    _operands(step)
    return step.emitter.emit("POW", [base, step.emitter.cast(exponent, base.dtype)], step.output)


@in_few_axes
def modulo(step: Step) -> Tensor:
    """Lower Mod: the sign of the divisor for integers, as FLOOR_MOD has it, or fmod with the dividend's."""
    left, right = _operands(step)
    if _is_plain_int8(step):
        left, right = (step.emitter.cast(tensor, np.int32) for tensor in (left, right))
    if not step.node.attributes.get_int("fmod", 0):
        return step.emitter.cast(step.emitter.apply("FLOOR_MOD", left, right), step.output.dtype, step.output)
    emitter = step.emitter
    sizes = [emitter.apply("MAXIMUM", value, emitter.apply("NEG", value)) for value in (left, right)]
    size = emitter.apply("FLOOR_MOD", *sizes)
    is_negative = emitter.apply("LESS", left, emitter.number(0, left), dtype=np.bool_)
    output = emitter.like(size, "signed")
    emitter.emit("SELECT_V2", [is_negative, emitter.apply("NEG", size), size], output, data=1)
    return output if output.dtype == step.output.dtype else emitter.cast(output, step.output.dtype, step.output)


@in_few_axes
def prelu(step: Step) -> Tensor:
    """Lower PRelu, in float: the int8 kernel is not XNNPACK's, takes ten times as long and is up to one step off."""
    return step.emitter.emit("PRELU", list(_operands(step)), step.output)


def cast(step: Step) -> Tensor:
    """Lower Cast."""
    if step.data.dtype == step.output.dtype:
        return step.emitter.reshape(step.data, step.output.shape, step.output)
    if step.data.dtype == np.float32 and step.output.dtype == np.int8:
        raise RefusedError("a cast from float32 to int8, which saturates in one kernel and wraps around in another")
    return step.emitter.cast(step.data, step.output.dtype, step.output)
