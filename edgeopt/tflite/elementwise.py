"""Arithmetic on two operands with broadcasting."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.program import Tensor
from edgeopt.tflite.step import Lower, RefusedError, Step

_MAX_RANK = 4  # what the int8 kernels broadcast over in every runtime that we name


def arithmetic(builtin: str, options_type: Any) -> Lower:
    """Return the lowering of one of ADD, SUB, MUL and DIV."""

    def lower(step: Step) -> Tensor:
        operands = [step.operand(0), step.operand(1)]
        if len({tensor.shape for tensor in operands}) > 1 and len(step.output.shape) > _MAX_RANK:
            raise RefusedError(f"broadcasting over {len(step.output.shape)} axes, expected at most {_MAX_RANK}")
        options = options_type()
        options.fusedActivationFunction = step.activation
        version = 3 if builtin == "MUL" and step.is_integer and _multiplier(step) >= 1 else None
        return step.emitter.emit(builtin, list(operands), step.output, options, version=version)

    return lower


def _multiplier(step: Step) -> float:
    left, right = step.operand(0).per_tensor.scale, step.operand(1).per_tensor.scale
    return left * right / step.output.per_tensor.scale


add = arithmetic("ADD", schema.AddOptionsT)
subtract = arithmetic("SUB", schema.SubOptionsT)
multiply = arithmetic("MUL", schema.MulOptionsT)
divide = arithmetic("DIV", schema.DivOptionsT)
