"""The table of operators: one entry each. Adding an operator is an entry here, a function in its family and a test.

Keys are ``(domain, operator)`` after normal form and layout; the domain ``edgeopt`` is described in
:mod:`edgeopt.tflite.normal_form`.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeopt.tflite import activation, clamping, convolution, elementwise, matmul, pooling, shape
from edgeopt.tflite.step import Entry, never

OPERATORS: Mapping[tuple[str, str], Entry] = {
    ("", "Add"): Entry(elementwise.add, fuses=True),
    ("", "Concat"): Entry(shape.concat, fuses=True),
    ("", "Div"): Entry(elementwise.divide, never, fuses=True),
    ("", "HardSwish"): Entry(activation.hard_swish, never),
    ("", "Mul"): Entry(elementwise.multiply, fuses=True),
    ("", "Sigmoid"): Entry(activation.sigmoid, activation.gives_unit_interval),
    ("", "Softmax"): Entry(activation.softmax, activation.gives_unit_interval),
    ("", "Sub"): Entry(elementwise.subtract, fuses=True),
    ("", "Tanh"): Entry(activation.tanh, activation.gives_symmetric_unit),
    ("", "Transpose"): Entry(shape.transpose, keeps_scale=True),
    ("edgeopt", "AveragePool"): Entry(pooling.average_pool, fuses=True, keeps_scale=True),
    ("edgeopt", "Clamp"): Entry(clamping.clamp_step),
    ("edgeopt", "Conv"): Entry(convolution.convolution, convolution.has_integer_kernel, fuses=True, bias=2),
    ("edgeopt", "FullyConnected"): Entry(matmul.fully_connected, convolution.has_integer_kernel, fuses=True, bias=2),
    ("edgeopt", "MaxPool"): Entry(pooling.max_pool, fuses=True, keeps_scale=True),
    ("edgeopt", "Mean"): Entry(pooling.mean),
    ("edgeopt", "Pad"): Entry(shape.pad, keeps_scale=True),
    ("edgeopt", "Reshape"): Entry(shape.reshape, keeps_scale=True),
    ("edgeopt", "Resize"): Entry(shape.resize, keeps_scale=True),
    ("edgeopt", "Slice"): Entry(shape.slices, keeps_scale=True),
}
