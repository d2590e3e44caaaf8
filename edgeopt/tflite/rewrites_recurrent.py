"""LSTM, GRU and RNN unrolled: one fully connected layer over the whole input, then one a step over the state.

The states are inputs and outputs of the graph, as in ONNX: an application that feeds frame by frame hands them on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.tflite.constants import read_array, read_constant
from edgeopt.tflite.program import DYNAMIC, RefusedError
from edgeopt.tflite.rewriting import DOMAIN, Rewriting, is_read, start
from edgeopt.tflite.shapes import shape_of

_FUNCTIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_States = tuple[ir.Value, ...]


class _Cell:
    """One direction: its parameters, and the gates that they make; those lie side by side, ``hidden`` values each."""

    def __init__(self, write: Rewriting, index: int) -> None:
        node = write.node
        self.write = write
        weight, recurrent = (_parameter(node, place, index) for place in (1, 2))
        bias = _parameter(node, 3, index) if _has(node, 3) else np.zeros(2 * len(weight), np.float32)
        self.hidden = recurrent.shape[1]
        self.inputs = self._constants(weight, bias[: len(weight)])
        self.states = self._constants(recurrent, bias[len(weight) :])
        last = (len(recurrent) // self.hidden - 1) * self.hidden
        self.first_gates = self._constants(recurrent[:last], bias[len(weight) : len(weight) + last])
        self.last_gate = self._constants(recurrent[last:], bias[len(weight) + last :])
        self.peepholes = self._constants(*_parameter(node, 7, index).reshape(3, -1)) if _has(node, 7) else []
        defaults = _FUNCTIONS[node.op_type]
        names = node.attributes.get_strings("activations", ()) or defaults * 2
        self._functions = names[index * len(defaults) :]

    def _constants(self, *arrays: NDArray[Any]) -> list[ir.Value]:
        return [self.write.constant(array) for array in arrays]

    def gate(self, gates: ir.Value, index: int, count: int = 1) -> ir.Value:
        """Return the values of one gate, or of several."""
        return self.write.part(gates, 1, index * self.hidden, count * self.hidden)

    def activated(self, value: ir.Value, index: int) -> ir.Value:
        """Return the function number ``index`` of the node's activations."""
        name = self._functions[index]
        if name == "Relu":
            return self.write.add("Clamp", value, domain=DOMAIN, low=0.0, high=math.inf)
        if name not in ("Sigmoid", "Tanh"):
            raise RefusedError(f"the activation {name}, expected Sigmoid, Tanh or Relu")
        return self.write.add(name, value)


def _lstm_step(cell: _Cell, projected: ir.Value, states: _States) -> _States:
    """Gates in the order input, output, forget, cell."""
    write, (state, memory) = cell.write, states
    gates = write.add("Add", projected, write.layer(state, *cell.states))
    into, out, forget, new = (cell.gate(gates, index) for index in range(4))
    if cell.peepholes:
        into = write.add("Add", into, write.add("Mul", cell.peepholes[0], memory))
        forget = write.add("Add", forget, write.add("Mul", cell.peepholes[2], memory))
    kept = write.add("Mul", cell.activated(forget, 0), memory)
    memory = write.add("Add", kept, write.add("Mul", cell.activated(into, 0), cell.activated(new, 1)))
    if cell.peepholes:
        out = write.add("Add", out, write.add("Mul", cell.peepholes[1], memory))
    return write.add("Mul", cell.activated(out, 0), cell.activated(memory, 2)), memory


def _gru_step(cell: _Cell, projected: ir.Value, states: _States) -> _States:
    """Gates in the order update, reset, hidden."""
    write, (state,) = cell.write, states
    resets_last = write.node.attributes.get_int("linear_before_reset", 0) == 1
    gates = write.layer(state, *(cell.states if resets_last else cell.first_gates))
    both = cell.activated(write.add("Add", cell.gate(projected, 0, 2), cell.gate(gates, 0, 2)), 0)
    update, reset = cell.gate(both, 0), cell.gate(both, 1)
    if resets_last:
        recurrent = write.add("Mul", reset, cell.gate(gates, 2))
    else:
        recurrent = write.layer(write.add("Mul", reset, state), *cell.last_gate)
    new = cell.activated(write.add("Add", cell.gate(projected, 2), recurrent), 1)
    change = write.add("Mul", update, write.add("Sub", state, new))
    return (write.add("Add", new, change),)


def _rnn_step(cell: _Cell, projected: ir.Value, states: _States) -> _States:
    return (cell.activated(cell.write.add("Add", projected, cell.write.layer(states[0], *cell.states)), 0),)


_STEPS = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}


def _unrolled(node: ir.Node) -> None:
    """Run each direction; Y is (step, direction, batch, hidden), the states at the end (direction, batch, hidden)."""
    batch_first: int = node.attributes.get_int("layout", 0)
    _check(node, batch_first)
    write = Rewriting(node)
    reverse = _REVERSED[node.attributes.get_string("direction", "forward")]
    runs = [_run(_Cell(write, index), index, batch_first, backwards) for index, backwards in enumerate(reverse)]
    results: list[ir.Value | None] = [None] * len(node.outputs)
    if is_read(node.outputs[0]):
        in_time = [run[::-1] if backwards else run for run, backwards in zip(runs, reverse, strict=True)]
        steps = [_joined(write, [states[0] for states in step], 1, rank=4) for step in zip(*in_time, strict=True)]
        whole = _joined(write, steps, 0, rank=4)
        results[0] = write.transpose(whole, (2, 0, 1, 3)) if batch_first else whole
    for place in range(1, len(node.outputs)):
        last = _joined(write, [run[-1][place - 1] for run in runs], 0, rank=3)
        results[place] = write.transpose(last, (1, 0, 2)) if batch_first else last
    write.finish(*results)


def _check(node: ir.Node, time_axis: int) -> None:
    num_steps = shape_of(node.inputs[0])[time_axis]
    if num_steps == DYNAMIC:
        raise RefusedError("a dynamic number of steps; export it with the number of steps fixed")
    lengths = read_array(node.inputs[4]) if _has(node, 4) else np.array(num_steps)
    if lengths is None or (lengths != num_steps).any():
        raise RefusedError("sequences of unequal or computed lengths")
    if "clip" in node.attributes or node.attributes.get_int("input_forget", 0) != 0:
        raise RefusedError("clipped or coupled gates")


def _run(cell: _Cell, index: int, time_axis: int, backwards: bool) -> list[_States]:
    """Return the states behind each step, in the order of computation."""
    write, node, (_, source, shape) = cell.write, cell.write.node, start(cell.write.node)
    projected = write.layer(source, *cell.inputs)
    places = range(5, 7 if node.op_type == "LSTM" else 6)
    states: _States = tuple(_initial(cell, place, index, time_axis) for place in places)
    run = []
    steps = range(shape[time_axis])
    for step in reversed(steps) if backwards else steps:
        states = _STEPS[node.op_type](cell, _picked(write, projected, time_axis, step), states)
        run.append(states)
    return run


def _initial(cell: _Cell, place: int, index: int, axis: int) -> ir.Value:
    node, write = cell.write.node, cell.write
    value = node.inputs[place] if _has(node, place) else None
    if value is None:
        return write.constant(np.zeros((1, cell.hidden), np.float32))
    return _picked(write, value, axis, index)


def _picked(write: Rewriting, value: ir.Value, axis: int, index: int) -> ir.Value:
    shape = shape_of(value)
    return write.reshape(write.part(value, axis, index, 1), shape[:axis] + shape[axis + 1 :])


def _joined(write: Rewriting, parts: Sequence[ir.Value], axis: int, rank: int) -> ir.Value:
    """Put values side by side along an axis, each with axes of size 1 in front."""
    full = [write.reshape(part, ((1,) * rank + shape_of(part))[-rank:]) for part in parts]
    shape = list(shape_of(full[0]))
    shape[axis] = len(full)
    return write.add("Concat", *full, shape=tuple(shape), axis=axis) if len(full) > 1 else write.copy(full[0])


def _has(node: ir.Node, place: int) -> bool:
    return len(node.inputs) > place and node.inputs[place] is not None


def _parameter(node: ir.Node, place: int, index: int) -> NDArray[Any]:
    constant = read_constant(node.inputs[place])
    if constant is None:
        raise RefusedError("weights that are not constant")
    return np.asarray(constant.real()[index])


RECURRENT: Mapping[str, Callable[[ir.Node], None]] = dict.fromkeys(("GRU", "LSTM", "RNN"), _unrolled)
