"""Fully connected layers with constant weights, and products of two computed matrices.

int8 FULLY_CONNECTED with a scale for each output is version 12, which older runtimes refuse. A 1x1 CONV_2D has had such
scales from the start, runs the same matrix kernel in XNNPACK and rounds the same, so that is what per-channel weights
become.
"""

from __future__ import annotations

import math

from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.convolution import VALID, bias_tensor, constant_of, weights_tensor
from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Step

_MAX_RANK = 5  # BATCH_MATMUL's


def fully_connected(step: Step) -> Tensor:
    """Lower ``x @ w.T + b`` over the last axis."""
    constant_of(step.operand(1), "weights")
    weight = step.operand(1)
    if step.is_integer and not weight.per_tensor.is_per_tensor:
        return _as_convolution(step)
    rows, columns = _matrix_shape(step.data.shape), _matrix_shape(step.output.shape)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = step.activation
    filters = weights_tensor(step, constant_of(weight, "weights"), axis=0)
    bias = bias_tensor(step, weight, num_outputs=columns[1])
    source = step.emitter.reshape(step.data, rows)
    if columns == step.output.shape:
        return step.emitter.emit("FULLY_CONNECTED", [source, filters, bias], step.output, options)
    product = step.emitter.like(step.output, "matrix", columns)
    step.emitter.emit("FULLY_CONNECTED", [source, filters, bias], product, options)
    return step.emitter.reshape(product, step.output.shape, step.output)


def _as_convolution(step: Step) -> Tensor:
    rows, num_inputs = _matrix_shape(step.data.shape)
    _, num_outputs = _matrix_shape(step.output.shape)
    options = schema.Conv2DOptionsT()
    options.padding = VALID
    options.strideH = options.strideW = 1
    options.fusedActivationFunction = step.activation
    weight = constant_of(step.operand(1), "weights")
    filters = weights_tensor(step, weight.reshape(num_outputs, 1, 1, num_inputs), axis=0)
    bias = bias_tensor(step, step.operand(1), num_outputs)
    source = step.emitter.reshape(step.data, (rows, 1, 1, num_inputs))
    product = step.emitter.like(step.output, "pixels", (rows, 1, 1, num_outputs))
    step.emitter.emit("CONV_2D", [source, filters, bias], product, options)
    return step.emitter.reshape(product, step.output.shape, step.output)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    if shape[-1] == DYNAMIC:
        raise RefusedError("a fully connected layer over a dynamic axis")
    rows = shape[:-1]
    return (DYNAMIC if DYNAMIC in rows else math.prod(rows)), shape[-1]


def batched(step: Step) -> Tensor:
    """Lower MatMul of two computed tensors."""
    left, right = step.operand(0), step.operand(1)
    if max(len(left.shape), len(right.shape)) > _MAX_RANK:
        raise RefusedError(f"a product of {len(step.output.shape)} axes, expected at most {_MAX_RANK}")
    return step.emitter.emit("BATCH_MATMUL", [left, right], step.output, schema.BatchMatMulOptionsT())
