"""Functions of one operand, element by element: a kernel each, or a few of them where none exists.

What is put together here keeps float32's precision over the whole range, and overflows only where the function does.

Between DEQUANTIZE and QUANTIZE a float kernel is the integer form: XNNPACK makes one table of 256 results of the three
when it loads the file. On all int8 values under 20 random pairs of scales that table is what ONNX gives, and no int8
kernel is both that and faster (131,072 values, x86-64, one thread; the table takes 15 us whatever the function):

    kernel       differs from ONNX   time
    ELU          0                   15 us   <- taken
    EXP, GELU    0                   42 us
    HARD_SWISH   0.2 %, 1 step       563 us
    LEAKY_RELU   5 to 7 %, 1 step    8 us
    ABS          3.2 %, 1 step
    NEG          does not look at zero-points
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.tflite.program import DYNAMIC, Quantization, RefusedError, Tensor
from edgeopt.tflite.step import Entry, Lower, Operands, Step, always, never

_UNIT_INTERVAL = Quantization((1 / 256,), (-128,))
_SYMMETRIC = Quantization((1 / 128,), (0,))
_ERF_ABOVE = (1.1283791, 0.19039704, 0.052747294, 0.0037651653, 0.00028486483, 2.0500579e-6)
_ERF_BELOW = (1.0, 0.50206774, 0.11410506, 0.014968315, 0.0011624116, 3.8090475e-5)


def kernel(builtin: str) -> Lower:
    """Return the lowering of an operator that one kernel computes."""

    def lower(step: Step) -> Tensor:
        return step.emitter.emit(builtin, [step.data], step.output)

    return lower


def gives_unit_interval(operands: Operands, output: Quantization) -> bool:
    """Give scale 1/256 and zero-point -128 and nothing else."""
    return output == _UNIT_INTERVAL  # that of the kernel's table


def gives_symmetric_unit(operands: Operands, output: Quantization) -> bool:
    """Give scale 1/128 and zero-point 0 and nothing else."""
    return output == _SYMMETRIC


def softmax(step: Step) -> Tensor:
    """Lower Softmax; the layout has put its axis last."""
    return step.emitter.emit("SOFTMAX", [step.data], step.output, schema.SoftmaxOptionsT(beta=1.0))


def reciprocal(step: Step) -> Tensor:
    """Lower Reciprocal."""
    return step.emitter.apply("DIV", step.emitter.number(1, step.data), step.data)


def tan(step: Step) -> Tensor:
    """Lower Tan."""
    return step.emitter.apply("DIV", step.emitter.apply("SIN", step.data), step.emitter.apply("COS", step.data))


def atan(step: Step) -> Tensor:
    """Lower Atan."""
    if DYNAMIC in step.data.shape:
        raise RefusedError("an arc tangent of a dynamic shape: the kernel does not broadcast")
    ones = step.emitter.constant("ones", np.ones(step.data.shape, np.float32))
    return step.emitter.apply("ATAN2", step.data, ones)


def asin(step: Step) -> Tensor:
    """Lower Asin."""
    return step.emitter.apply("ATAN2", step.data, _other_side(step))


def acos(step: Step) -> Tensor:
    """Lower Acos."""
    return step.emitter.apply("ATAN2", _other_side(step), step.data)


def _other_side(step: Step) -> Tensor:
    """Return ``sqrt(1 - x^2)`` as ``sqrt((1 - x)(1 + x))``, which loses nothing near 1."""
    emitter, one = step.emitter, step.emitter.number(1, step.data)
    product = emitter.apply("MUL", emitter.apply("SUB", one, step.data), emitter.apply("ADD", one, step.data))
    return emitter.apply("SQRT", product)


def cosh(step: Step) -> Tensor:
    """Lower Cosh."""
    emitter, half = step.emitter, step.emitter.number(0.5, step.data)
    grown = emitter.apply("EXP", step.data)
    shrunk = emitter.apply("EXP", emitter.apply("NEG", step.data))
    return emitter.apply("ADD", emitter.apply("MUL", half, grown), emitter.apply("MUL", half, shrunk))


def is_nan(step: Step) -> Tensor:
    """Lower IsNaN: NaN alone differs from itself."""
    return step.emitter.apply("NOT_EQUAL", step.data, step.data, dtype=np.bool_)


def is_inf(step: Step) -> Tensor:
    """Lower IsInf."""
    signs = [bool(step.node.attributes.get_int(f"detect_{sign}", 1)) for sign in ("negative", "positive")]
    emitter, infinity = step.emitter, step.emitter.number(math.inf, step.data)
    if all(signs):
        return emitter.apply("EQUAL", emitter.apply("ABS", step.data), infinity, dtype=np.bool_)
    if not any(signs):
        return emitter.apply("LESS", infinity, step.data, dtype=np.bool_)
    wanted = infinity if signs[1] else emitter.number(-math.inf, step.data)
    return emitter.apply("EQUAL", step.data, wanted, dtype=np.bool_)


def softplus(step: Step) -> Tensor:
    """Lower Softplus, ``log(1 + e^x)``, as ``max(x, 0) + log(1 + e^-|x|)``, which does not overflow."""
    emitter, x = step.emitter, step.data
    decay = emitter.apply("EXP", emitter.apply("NEG", emitter.apply("ABS", x)))
    return emitter.apply("ADD", emitter.apply("RELU", x), _log_of_one_plus(step, decay))


def _log_of_one_plus(step: Step, x: Tensor) -> Tensor:
    """Return ``log(1 + x)`` for ``x >= 0``, precise for small ones too: ``x log(u) / (u - 1)``, ``u = 1 + x``."""
    emitter, one = step.emitter, step.emitter.number(1, x)
    above = emitter.apply("ADD", x, one)
    seen = emitter.apply("SUB", above, one)
    vanished = emitter.apply("EQUAL", seen, emitter.number(0, x), dtype=np.bool_)
    divisor, result = emitter.like(x, "divisor"), emitter.like(x, "log1p")
    emitter.emit("SELECT_V2", [vanished, one, seen], divisor, data=1)
    log = emitter.apply("MUL", emitter.apply("LOG", above), emitter.apply("DIV", x, divisor))
    return emitter.emit("SELECT_V2", [vanished, x, log], result, data=1)


def sinh(step: Step) -> Tensor:
    """Lower Sinh: with ``m = e^-|x| - 1``, which ELU computes without loss, ``-sign(x) m (m + 2) / (2 e^-|x|)``."""
    emitter, below = step.emitter, step.emitter.apply("NEG", step.emitter.apply("ABS", step.data))
    lost = emitter.apply("ELU", below)
    size = emitter.apply("MUL", lost, emitter.apply("ADD", lost, emitter.number(2, lost)))
    size = emitter.apply("DIV", size, emitter.apply("EXP", below))
    return emitter.apply(
        "MUL", size, emitter.apply("MUL", emitter.apply("SIGN", step.data), emitter.number(-0.5, size))
    )


def asinh(step: Step) -> Tensor:
    """Lower Asinh, ``sign(x) log(1 + |x| + |x| |x| / (1 + sqrt(1 + x^2)))``, with no square that overflows."""
    emitter, one, size = step.emitter, step.emitter.number(1, step.data), step.emitter.apply("ABS", step.data)
    small = emitter.apply("MINIMUM", size, emitter.number(1e9, size))
    root = emitter.apply("SQRT", emitter.apply("ADD", emitter.apply("MUL", small, small), one))
    ratio = emitter.apply("DIV", size, emitter.apply("ADD", emitter.apply("MAXIMUM", root, size), one))
    grown = emitter.apply("ADD", size, emitter.apply("MUL", size, ratio))
    return emitter.apply("MUL", emitter.apply("SIGN", step.data), _log_of_one_plus(step, grown))


def acosh(step: Step) -> Tensor:
    """Lower Acosh, with ``t = x - 1``: ``log(1 + t + sqrt(t) sqrt(t + 2))``."""
    emitter, t = step.emitter, step.emitter.apply("SUB", step.data, step.emitter.number(1, step.data))
    above = emitter.apply("SQRT", emitter.apply("ADD", t, emitter.number(2, t)))
    return _log_of_one_plus(step, emitter.apply("ADD", t, emitter.apply("MUL", emitter.apply("SQRT", t), above)))


def atanh(step: Step) -> Tensor:
    """Lower Atanh, ``sign(x) log(1 + 2|x| / (1 - |x|)) / 2``."""
    emitter, size = step.emitter, step.emitter.apply("ABS", step.data)
    ratio = emitter.apply("DIV", size, emitter.apply("SUB", emitter.number(1, size), size))
    log = _log_of_one_plus(step, emitter.apply("ADD", ratio, ratio))
    return emitter.apply("MUL", log, emitter.apply("MUL", emitter.apply("SIGN", step.data), emitter.number(0.5, log)))


def bitwise_not(step: Step) -> Tensor:
    """Lower BitwiseNot."""
    return step.emitter.apply("BITWISE_XOR", step.data, step.emitter.number(-1, step.data))


def mish(step: Step) -> Tensor:
    """Lower Mish, ``x tanh(log(1 + e^x))``: ``x n / (n + 2)`` with ``n = e^x (e^x + 2)``, beyond 20 just ``x``."""
    emitter, x, two = step.emitter, step.data, step.emitter.number(2, step.data)
    grown = emitter.apply("EXP", emitter.apply("MINIMUM", x, emitter.number(20, x)))
    above = emitter.apply("MUL", grown, emitter.apply("ADD", grown, two))
    return emitter.apply("MUL", x, emitter.apply("DIV", above, emitter.apply("ADD", above, two)))


def swish(step: Step) -> Tensor:
    """Lower Swish, ``x sigmoid(alpha x)``."""
    emitter, alpha = step.emitter, step.node.attributes.get_float("alpha", 1.0)
    scaled = step.data if alpha == 1 else emitter.apply("MUL", step.data, emitter.number(alpha, step.data))
    return emitter.apply("MUL", step.data, emitter.apply("LOGISTIC", scaled))


def erf(step: Step) -> Tensor:
    """Lower Erf as ``x p(x^2) / q(x^2)``, fitted to 2e-8 on ``|x| < 3.92``; beyond, float32 knows only 1."""
    emitter, bound = step.emitter, 3.92
    x = emitter.apply("MAXIMUM", step.data, emitter.number(-bound, step.data))
    x = emitter.apply("MINIMUM", x, emitter.number(bound, x))
    square = emitter.apply("MUL", x, x)

    def polynomial(coefficients: Sequence[float]) -> Tensor:
        total = emitter.number(coefficients[-1], x)
        for coefficient in coefficients[-2::-1]:
            total = emitter.apply("ADD", emitter.apply("MUL", total, square), emitter.number(coefficient, x))
        return total

    return emitter.apply("DIV", emitter.apply("MUL", x, polynomial(_ERF_ABOVE)), polynomial(_ERF_BELOW))


def softsign(step: Step) -> Tensor:
    """Lower Softsign, ``x / (1 + |x|)``."""
    emitter = step.emitter
    below = emitter.apply("ADD", emitter.apply("ABS", step.data), emitter.number(1, step.data))
    return emitter.apply("DIV", step.data, below)


def hard_sigmoid(step: Step) -> Tensor:
    """Lower HardSigmoid, ``max(0, min(1, alpha x + beta))``."""
    emitter, attributes = step.emitter, step.node.attributes
    alpha, beta = attributes.get_float("alpha", 0.2), attributes.get_float("beta", 0.5)
    line = emitter.apply("MUL", step.data, emitter.number(alpha, step.data))
    line = emitter.apply("ADD", line, emitter.number(beta, step.data))
    return emitter.apply("RELU", emitter.apply("MINIMUM", line, emitter.number(1, step.data)))


def elu(step: Step) -> Tensor:
    """Lower Elu; the int8 kernel is a table, and for alpha 1 alone."""
    alpha = step.node.attributes.get_float("alpha", 1.0)
    if step.is_integer and alpha != 1:
        raise RefusedError(f"an int8 Elu with alpha {alpha}")
    return _exponential_unit(step, alpha, 1.0)


def selu(step: Step) -> Tensor:
    """Lower Selu."""
    alpha = step.node.attributes.get_float("alpha", 1.67326319217681884765625)
    return _exponential_unit(step, alpha, step.node.attributes.get_float("gamma", 1.05070102214813232421875))


def _exponential_unit(step: Step, alpha: float, gamma: float) -> Tensor:
    """Return ``gamma * (x if x > 0 else alpha * (e^x - 1))``; the kernel ELU is that with ones."""
    emitter, x = step.emitter, step.data
    if (alpha, gamma) == (1.0, 1.0):
        return emitter.emit("ELU", [x], step.output)
    low = emitter.apply("ELU", emitter.apply("MINIMUM", x, emitter.number(0, x)))
    low = emitter.apply("MUL", low, emitter.number(alpha, x))
    both = emitter.apply("ADD", emitter.apply("RELU", x), low)
    return both if gamma == 1 else emitter.apply("MUL", both, emitter.number(gamma, x))


def thresholded_relu(step: Step) -> Tensor:
    """Lower ThresholdedRelu, ``x if x > alpha else 0``."""
    emitter, alpha = step.emitter, step.node.attributes.get_float("alpha", 1.0)
    above = emitter.apply("GREATER", step.data, emitter.number(alpha, step.data), dtype=np.bool_)
    return emitter.emit("SELECT_V2", [above, step.data, emitter.number(0, step.data)], step.output, data=1)


def leaky_relu(step: Step) -> Tensor:
    """Lower LeakyRelu."""
    options = schema.LeakyReluOptionsT(step.node.attributes.get_float("alpha", 0.01))
    return step.emitter.emit("LEAKY_RELU", [step.data], step.output, options)


def gelu(step: Step) -> Tensor:
    """Lower Gelu, exact or with tanh."""
    form = step.node.attributes.get_string("approximate", "none")
    if form not in ("none", "tanh"):
        raise RefusedError(f"approximate={form!r}, expected 'none' or 'tanh'")
    return step.emitter.emit("GELU", [step.data], step.output, schema.GeluOptionsT(form == "tanh"))


_NAMED_ALIKE = ("Abs", "BitCast", "Ceil", "Cos", "Exp", "Floor", "Log", "Neg", "Round", "Sign", "Sin", "Sqrt")

UNARY: Mapping[str, Entry] = {
    name: Entry(lower, always if name == "Elu" else never)
    for name, lower in {
        **{name: kernel(name.upper()) for name in _NAMED_ALIKE},
        "Acos": acos, "Acosh": acosh, "Asin": asin, "Asinh": asinh, "Atan": atan, "Atanh": atanh, "Cosh": cosh,
        "BitwiseNot": bitwise_not, "Elu": elu, "Erf": erf, "Gelu": gelu, "HardSigmoid": hard_sigmoid, "IsInf": is_inf,
        "IsNaN": is_nan, "LeakyRelu": leaky_relu, "Mish": mish, "Not": kernel("LOGICAL_NOT"), "Selu": selu,
        "Reciprocal": reciprocal,
        "Sinh": sinh, "Softplus": softplus, "Softsign": softsign, "Swish": swish, "Tan": tan,
        "ThresholdedRelu": thresholded_relu, "HardSwish": kernel("HARD_SWISH"),
        "LogSoftmax": kernel("LOG_SOFTMAX"),  # the int8 kernel is not exact; the layout has put its axis last
    }.items()
} | {
    "Sigmoid": Entry(kernel("LOGISTIC"), gives_unit_interval),
    "Softmax": Entry(softmax, gives_unit_interval),
    "Tanh": Entry(kernel("TANH"), gives_symmetric_unit),
}  # fmt: skip
