"""Activations whose int8 kernels are tables, and which therefore prescribe their output's scale."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.program import Quantization, Tensor
from edgeopt.tflite.step import Operands, Step
from edgeopt.tflite.unary import kernel

_UNIT_INTERVAL = Quantization((1 / 256,), (-128,))
_SYMMETRIC = Quantization((1 / 128,), (0,))


def gives_unit_interval(operands: Operands, output: Quantization) -> bool:
    """Give scale 1/256 and zero-point -128 and nothing else."""
    return output == _UNIT_INTERVAL


def gives_symmetric_unit(operands: Operands, output: Quantization) -> bool:
    """Give scale 1/128 and zero-point 0 and nothing else."""
    return output == _SYMMETRIC


sigmoid = kernel("LOGISTIC")
tanh = kernel("TANH")
log_softmax = kernel("LOG_SOFTMAX")  # in float: the int8 kernel is not exact; the layout has put its axis last
hard_swish = kernel("HARD_SWISH")  # in float: unary.py says why


def softmax(step: Step) -> Tensor:
    """Lower Softmax; the layout has put its axis last."""
    return step.emitter.emit("SOFTMAX", [step.data], step.output, schema.SoftmaxOptionsT(beta=1.0))
