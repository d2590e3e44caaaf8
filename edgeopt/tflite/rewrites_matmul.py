"""Products of matrices that are both computed: MatMul, Gemm in full and Einsum, as batched MatMul of two matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from edgeopt.tflite.constants import Constant, read_constant
from edgeopt.tflite.program import RefusedError
from edgeopt.tflite.rewriting import Rewriting, start
from edgeopt.tflite.shapes import Shape, broadcast_shape, shape_of


def batched_matmul(node: ir.Node) -> None:
    """A MatMul of two tensors; vectors become matrices of one row or column."""
    (write, left, _), right, weight = start(node), node.inputs[1], read_constant(node.inputs[0])
    assert right is not None
    if weight is not None and weight.scales is not None and weight.array.ndim == 2 and len(shape_of(right)) > 1:
        _weights_on_the_left(write, weight, right)
        return
    if len(shape_of(left)) > 1 and len(shape_of(right)) > 1:
        return
    rows = write.reshape(left, (1, *shape_of(left))) if len(shape_of(left)) == 1 else left
    columns = write.reshape(right, (*shape_of(right), 1)) if len(shape_of(right)) == 1 else right
    write.finish(write.reshape(_product(write, rows, columns), shape_of(node.outputs[0])))


def _weights_on_the_left(write: Rewriting, weight: Constant, right: ir.Value) -> None:
    """``W X`` with quantized weights as the transpose of ``X.T W.T``, which is a fully connected layer."""
    swap = [*range(len(shape_of(right)) - 2), len(shape_of(right)) - 1, len(shape_of(right)) - 2]
    columns = write.transpose(right, swap)
    write.finish(write.transpose(write.layer(columns, write.write(weight, "weight")), swap))


def _product(write: Rewriting, left: ir.Value, right: ir.Value) -> ir.Value:
    first, second = shape_of(left), shape_of(right)
    batch = broadcast_shape([first[:-2], second[:-2]]) if len(first) > 2 or len(second) > 2 else ()
    return write.add("MatMul", left, right, shape=(*batch, first[-2], second[-1]))


def full_gemm(node: ir.Node) -> None:
    """A Gemm that is no fully connected layer: alpha and beta go into constants, else into multiplications."""
    (write, left, _), right, attributes = start(node), node.inputs[1], node.attributes
    assert right is not None
    if attributes.get_int("transA", 0):
        left = write.transpose(left, (1, 0))
    if attributes.get_int("transB", 0):
        right = write.transpose(right, (1, 0))
    product = _times(write, _product(write, left, right), attributes.get_float("alpha", 1.0))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        _check_bias(shape_of(node.inputs[2]), shape_of(node.outputs[0]))
        bias = _times(write, node.inputs[2], attributes.get_float("beta", 1.0))
        product = write.add("Add", product, bias)
    write.finish(product)


def _check_bias(bias: Shape, result: Shape) -> None:
    """Refuse what does not broadcast to the result; ONNX's shape inference lets it through."""
    fits = len(bias) <= 2 and all(size in (1, wanted) for size, wanted in zip(bias[::-1], result[::-1], strict=False))
    if not fits:
        raise RefusedError(f"a bias of shape {list(bias)} for a result of shape {list(result)}")


def _times(write: Rewriting, value: ir.Value, factor: float) -> ir.Value:
    if factor == 1:
        return value
    constant = read_constant(value)
    if constant is not None and constant.scales is None:
        return write.write(Constant((constant.array * factor).astype(constant.array.dtype)), "scaled")
    return write.add("Mul", value, write.number(factor, value))


def einsum(node: ir.Node) -> None:
    """One or two operands without a diagonal: sum up what only one has, and multiply as batched matrices."""
    operands = [value for value in node.inputs if value is not None]
    terms, result = _letters(node.attributes.get_string("equation"), [len(shape_of(value)) for value in operands])
    if len(operands) > 2 or any(len(set(term)) < len(term) for term in (*terms, result)):
        raise RefusedError("an equation of more than two operands or with a diagonal")
    write = Rewriting(node)
    if len(operands) == 1:
        value, term = _summed(write, operands[0], terms[0], result)
    else:
        value, term = _contracted(write, operands, terms, result)
    moved = write.transpose(value, [term.index(letter) for letter in result]) if term != result else value
    write.finish(moved if moved not in operands else write.copy(moved))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return a letter for each axis of the operands and of the result; axes under an ellipsis get capitals of ours."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = max((rank - len(t) + 3 for t, rank in zip(terms, ranks, strict=True) if "..." in t), default=0)
    spare = [chr(0x100 + index) for index in range(hidden)]
    full = []
    for term, rank in zip(terms, ranks, strict=True):
        count = rank - len(term) + 3
        full.append(term.replace("...", "".join(spare[hidden - count :]) if count else ""))
    if not arrow:
        letters = "".join(sorted(set("".join(terms)) - {"."}))
        single = "".join(letter for letter in letters if "".join(terms).count(letter) == 1)
        result = ("..." if hidden else "") + single
    return full, result.replace("...", "".join(spare))


def _summed(write: Rewriting, value: ir.Value, term: str, kept: str) -> tuple[ir.Value, str]:
    axes = [axis for axis, letter in enumerate(term) if letter not in kept]
    left = "".join(letter for letter in term if letter in kept)
    return (write.reduce("Sum", value, axes, keepdims=0), left) if axes else (value, term)


def _contracted(
    write: Rewriting, operands: Sequence[ir.Value], terms: Sequence[str], result: str
) -> tuple[ir.Value, str]:
    first, first_term = _summed(write, operands[0], terms[0], terms[1] + result)
    second, second_term = _summed(write, operands[1], terms[1], terms[0] + result)
    sizes: dict[str, int] = {}
    for value, term in ((first, first_term), (second, second_term)):
        for letter, size in zip(term, shape_of(value), strict=True):
            if size < 0 or sizes.get(letter, size) != size:
                raise RefusedError("an equation over axes that are dynamic or broadcast")
            sizes[letter] = size
    both = [letter for letter in first_term if letter in second_term]
    batch = "".join(letter for letter in both if letter in result)
    inner = "".join(letter for letter in both if letter not in result)
    rows = "".join(letter for letter in first_term if letter not in both)
    columns = "".join(letter for letter in second_term if letter not in both)

    def matrix(value: ir.Value, term: str, order: str, shape: Sequence[str]) -> ir.Value:
        moved = write.transpose(value, [term.index(letter) for letter in order]) if order != term else value
        return write.reshape(moved, _merged(shape, sizes))

    left = matrix(first, first_term, batch + rows + inner, (batch, rows, inner))
    right = matrix(second, second_term, batch + inner + columns, (batch, inner, columns))
    product = _product(write, left, right)
    term = batch + rows + columns
    return write.reshape(product, tuple(sizes[letter] for letter in term)), term


def _merged(groups: Sequence[str], sizes: Mapping[str, int]) -> Shape:
    return tuple(math.prod(sizes[letter] for letter in group) for group in groups)


PRODUCTS: Mapping[str, Callable[[ir.Node], None]] = {"Einsum": einsum}
