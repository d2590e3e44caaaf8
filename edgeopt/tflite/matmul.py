"""Fully connected layers with constant weights, and products of two computed matrices.

FULLY_CONNECTED takes rows of any number of axes, and with ``keepNumDims`` gives as many, so that no RESHAPE is needed.
Weights with a scale for each output are written as version 10: runtimes knew them before LiteRT numbered them 12, all
that know version 10 among them, while older ones would load version 4 and compute with the first scale alone. With
float rows it is version 12: tflite-runtime 2.14 would load 10, and answer wrong.
"""

from __future__ import annotations

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.program import DYNAMIC, RefusedError, Tensor
from edgeopt.tflite.step import Step
from edgeopt.tflite.weights import bias_tensor, constant_of, has_packed_weights, weights_tensor

_MAX_RANK = 5  # BATCH_MATMUL's
_VERSION_PER_CHANNEL = _VERSION_PACKED = 10
_VERSION_PACKED_PER_CHANNEL = _VERSION_DYNAMIC = 12
_VERSION_KEEPS_RANK = 5


def fully_connected(step: Step) -> Tensor:
    """Lower ``x @ w.T + b`` over the last axis."""
    if step.data.shape[-1] == DYNAMIC:
        raise RefusedError("a fully connected layer over a dynamic axis")
    weight, packed, rank = step.operand(1), has_packed_weights(step), len(step.output.shape)
    num_outputs, num_inputs = step.output.shape[-1], step.data.shape[-1]
    array = constant_of(weight, "weights").reshape(num_outputs, num_inputs)
    filters = weights_tensor(step, array, axis=0, packed=packed)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = step.activation
    options.keepNumDims = rank > 2 and step.data.dtype != np.int16  # tflite-runtime 2.14 gets int16 wrong
    version = _VERSION_KEEPS_RANK if options.keepNumDims else None
    if step.is_dynamic:
        options.asymmetricQuantizeInputs, version = True, _VERSION_DYNAMIC
    elif step.is_integer and not weight.per_tensor.is_per_tensor:
        version = _VERSION_PACKED_PER_CHANNEL if packed else _VERSION_PER_CHANNEL
    elif packed:
        version = _VERSION_PACKED
    source = step.data if options.keepNumDims else step.emitter.rows(step.data, num_inputs)
    product = step.output
    if rank != 2 and not options.keepNumDims:
        rows = step.output.shape[:-1]
        product = step.emitter.like(product, "matrix", (DYNAMIC if DYNAMIC in rows else math.prod(rows), num_outputs))
    bias = bias_tensor(step, weight, num_outputs)
    step.emitter.emit("FULLY_CONNECTED", [source, filters, bias], product, options, version=version)
    return product if product is step.output else step.emitter.reshape(product, step.output.shape, step.output)


def batched(step: Step) -> Tensor:
    """Lower MatMul of two computed tensors, in float.

    The int8 kernel is not XNNPACK's: it took 8 to 10 times as long, and was one step off for 4 results of 10,000.
    """
    left, right = step.operand(0), step.operand(1)
    if max(len(left.shape), len(right.shape)) > _MAX_RANK:
        raise RefusedError(f"a product of {len(step.output.shape)} axes, expected at most {_MAX_RANK}")
    return step.emitter.emit("BATCH_MATMUL", [left, right], step.output, schema.BatchMatMulOptionsT())
