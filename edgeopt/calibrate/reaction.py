"""What the operators that read a tensor make of its quantization: the error that a range causes, one step on.

A tensor's own error says little. Behind a convolution, rounding errors of many signs cancel and the few clipped values
may be all that matters, or be multiplied by nothing. So every operator that reads an observed tensor is computed twice
in one graph, from the tensor and from its int8 values, and the difference is set against what it computes: noise to
signal, summed over the readers. Scales are inputs of the graph: one session tries all ranges of all tensors, with one
inference, of about three times the work, for each way to choose them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgeopt.affine import QuantParams
from edgeopt.artifacts import FloatModel
from edgeopt.session import OnnxSession

_ABSORBED = ("Relu", "Clip")  # every runtime computes these in the kernel of what they follow
_FLOAT = onnx.TensorProto.FLOAT


class Reactions:
    """The float graph with every observed tensor quantized for each of its readers alone.

    Args:
        source: the float graph.
        tensors: which tensors to try; those that nothing reads have no reaction.
    """

    def __init__(self, source: FloatModel, tensors: Iterable[str]) -> None:
        model = onnx.load(str(source.path), load_external_data=False)
        doubled = _Doubled(model.graph)
        for name in tensors:
            doubled.quantize(name)
        self.tensors = tuple(doubled.pairs)
        self._pairs = doubled.pairs
        self._session = OnnxSession(model.SerializeToString(), external_data_folder=source.path.parent)

    def errors(
        self, params: Mapping[str, QuantParams], probes: Iterable[Mapping[str, NDArray[np.generic]]]
    ) -> dict[str, float]:
        """Return the noise-to-signal ratio that each tensor's scale causes in its readers, over all probes.

        Sums are rounded once, so that the order of probes makes no difference.
        """
        scales: dict[str, NDArray[np.generic]] = {}
        for name in self.tensors:
            scales[_scale(name)] = np.array(params[name].scale, np.float32)
            scales[_zero_point(name)] = np.array(params[name].zero_point, np.int8)
        powers: dict[str, list[float]] = defaultdict(list)
        for probe in probes:
            for name, value in self._session.run({**probe, **scales}).items():
                powers[name].append(float(value))
        return {
            name: math.fsum(_ratio(math.fsum(powers[noise]), math.fsum(powers[signal])) for noise, signal in pairs)
            for name, pairs in self._pairs.items()
        }


class _Doubled:
    """Adds to a graph what it would compute from quantized tensors, and how far that is from what it computes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._dtypes = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        self._answers = {value.name for value in graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self._readers[name].append(node)
        self._signals: dict[str, str] = {}
        self.pairs: dict[str, list[tuple[str, str]]] = {}
        del graph.output[:]

    def quantize(self, tensor: str) -> None:
        """Add a quantized copy of a tensor and a second computation of everything that reads it."""
        readers = list(self._readers[tensor])
        if not readers or tensor in self._answers:
            return
        scale, zero_point, stored, real = (f"{tensor}~{part}" for part in ("scale", "zero_point", "int8", "real"))
        self._graph.input.extend(
            [
                helper.make_tensor_value_info(scale, _FLOAT, []),
                helper.make_tensor_value_info(zero_point, onnx.TensorProto.INT8, []),
            ]
        )
        self._add("QuantizeLinear", [tensor, scale, zero_point], stored)
        self._add("DequantizeLinear", [stored, scale, zero_point], real)
        pairs = [
            (self._power(f"{output}~from~{tensor}", [output, copied]), self._signal(output))
            for node in readers
            for output, copied in self._again(node, tensor, real)
        ]
        if pairs:
            self.pairs[tensor] = pairs

    def _again(self, node: onnx.NodeProto, tensor: str, real: str) -> Iterator[tuple[str, str]]:
        """Compute a node from a quantized input; yield its outputs, past an activation function, and their copies."""
        copied = self._copy(node, {tensor: real}, tensor)
        outputs = list(zip(node.output, copied, strict=True))
        after = self._readers[node.output[0]]
        if (
            len(outputs) == 1
            and len(after) == 1
            and after[0].op_type in _ABSORBED
            and after[0].input[0] == node.output[0]
        ):
            outputs = list(zip(after[0].output, self._copy(after[0], dict(outputs), tensor), strict=True))
        yield from ((output, again) for output, again in outputs if self._dtypes.get(output) == _FLOAT)

    def _copy(self, node: onnx.NodeProto, replaced: Mapping[str, str], tensor: str) -> list[str]:
        again = onnx.NodeProto()
        again.CopyFrom(node)
        again.name = f"{node.name}~from~{tensor}"
        again.input[:] = [replaced.get(name, name) for name in node.input]
        again.output[:] = [name and f"{name}~again~{tensor}" for name in node.output]
        self._graph.node.append(again)
        return list(again.output)

    def _signal(self, output: str) -> str:
        if output not in self._signals:
            self._signals[output] = self._power(f"{output}~signal", [output])
        return self._signals[output]

    def _power(self, name: str, operands: Sequence[str]) -> str:
        """Add the sum of squares of a tensor, or of the difference of two, as an output."""
        if len(operands) > 1:
            self._add("Sub", operands, f"{name}~difference")
        squared = f"{name}~difference" if len(operands) > 1 else operands[0]
        self._add("ReduceSumSquare", [squared], f"{name}~power", keepdims=0)
        self._graph.output.append(helper.make_tensor_value_info(f"{name}~power", _FLOAT, []))
        return f"{name}~power"

    def _add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self._graph.node.append(helper.make_node(op_type, inputs, [output], name=f"{output}~node", **attributes))


def _scale(tensor: str) -> str:
    return f"{tensor}~scale"


def _zero_point(tensor: str) -> str:
    return f"{tensor}~zero_point"


def _ratio(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 else math.inf
