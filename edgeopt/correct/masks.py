"""Mask clamping: the -1e4 or -inf that hides tokens from attention becomes a number that int8 can stand.

A mask is added to the scores in front of a Softmax (or put in their place), and one scale has to hold both: with -1e4
its step is 39, and nothing is left of the scores. Any number hides a token that is so far below the others' scores
that its exponential is lost in the sum of them. With scores in ``[low, high]`` on the samples and ``n`` of them in a
row,

    floor = -(high - low) - log(n) - 20 log(2)

leaves all hidden tokens together less than ``2^-20`` of a row's sum, about the last bits of a float32 softmax.

Source: the bound is elementary; the harm is described in Bondarenko et al., "Understanding and Overcoming the
Challenges of Efficient Transformer Quantization", arXiv 2109.12948.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.correct.operands import constant, is_constant, replace_constant

HIDING = -1e3  # a constant below this is a mask's, not a score's
_LOST = 20 * math.log(2)
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Expand", "Identity", "Transpose", "Slice")
_LOGIC = ("Mul", "Where", "Add")

Inside = Callable[[Sequence[str]], Iterator[dict[str, NDArray[np.generic]]]]


@dataclass(frozen=True)
class _Mask:
    """A Softmax, the tensor of scores, and the constants that hide some of them; ``added`` or put in their place."""

    softmax: ir.Node
    scores: ir.Value
    constants: tuple[tuple[ir.Node, int], ...]
    added: bool


def clamp_masks(graph: ir.Graph, inside: Inside) -> int:
    """Raise each constant that hides scores from a Softmax to its floor, in place; return how many there were.

    Args:
        graph: the float graph.
        inside: yields what the named tensors hold on each sample.
    """
    masks = [mask for node in graph if node.op_type == "Softmax" for mask in _masks_of(node)]
    if not masks:
        return 0
    low, high, longest = _score_bounds(masks, inside)
    floors: dict[tuple[ir.Node, int], float] = {}
    for mask in masks:
        name = str(mask.scores.name)
        floor = (0.0 if mask.added else high[name]) - (high[name] - low[name]) - math.log(longest[name]) - _LOST
        for place in mask.constants:
            floors[place] = min(floors.get(place, 0.0), math.floor(floor))
    for (node, index), floor in floors.items():
        array = constant(node, index).astype(np.float64)
        replace_constant(node, index, np.where(array < HIDING, floor, array))
    return len(floors)


def _masks_of(softmax: ir.Node) -> Iterator[_Mask]:
    """Yield what hides scores in front of a Softmax: a sum with a mask, or a choice between scores and a constant."""
    node = _behind_views(softmax.inputs[0])
    if node is None or node.op_type not in ("Add", "Where"):
        return
    sides = (0, 1) if node.op_type == "Add" else (1, 2)
    for index in sides:
        found = tuple(_hiding(node, index))
        scores = node.inputs[sum(sides) - index]
        if found and scores is not None and not is_constant(node, sum(sides) - index):
            yield _Mask(softmax, scores, found, added=node.op_type == "Add")


def _behind_views(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return _behind_views(node.inputs[0]) if node is not None and node.op_type in _VIEWS else node


def _hiding(node: ir.Node, index: int) -> Iterator[tuple[ir.Node, int]]:
    """Yield the constants below an operand that hide scores, as a node and the index of its operand."""
    if is_constant(node, index):
        array = constant(node, index)
        if np.issubdtype(array.dtype, np.floating) and array.size and array.min() < HIDING:
            yield node, index
        return
    producer = _behind_views(node.inputs[index])
    if producer is None or len(producer.outputs[0].uses()) == 0:
        return
    if producer.op_type in _LOGIC:
        indices = (1, 2) if producer.op_type == "Where" else (0, 1)
        for below in indices:
            if is_constant(producer, below):
                yield from _hiding(producer, below)


def _score_bounds(masks: Sequence[_Mask], inside: Inside) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Return the smallest and largest score of each mask on the samples, and how many stand in a row."""
    names = list(dict.fromkeys(str(mask.scores.name) for mask in masks))
    low, high, longest = dict.fromkeys(names, math.inf), dict.fromkeys(names, -math.inf), dict.fromkeys(names, 1)
    for answers in inside(names):
        for name, scores in answers.items():
            low[name], high[name] = min(low[name], float(scores.min())), max(high[name], float(scores.max()))
            longest[name] = max(longest[name], scores.shape[-1])
    return low, high, longest
