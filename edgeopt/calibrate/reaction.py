"""How far the network's answers move when one tensor alone is quantized: the error that a range causes.

A tensor's own error says little about it. Rounding errors of many signs cancel in the next convolution, the few values
that a range clips may be what the answer hangs on, or be multiplied by nothing. So the float graph is run with one
tensor in int8, and noise is set against signal where the network answers. It takes one inference for each tensor, each
range that is tried and each of a few samples. A final Softmax or Sigmoid is left out: where it is sure, it hides error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgeopt.affine import QuantParams
from edgeopt.artifacts import FloatModel
from edgeopt.session import OnnxSession

Arrays = Mapping[str, NDArray[np.generic]]

_SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid")
_SCALE, _ZERO_POINT, _INTEGERS, _REAL = "~scale", "~zero_point", "~integers", "~real"


class Reactions:
    """The float graph and what it answers to a few samples, ready to have one tensor after the other quantized.

    Args:
        source: the float graph.
        probes: samples, arrays by input.
    """

    def __init__(self, source: FloatModel, probes: Iterable[Arrays]) -> None:
        self._folder = source.path.parent
        self._model = onnx.load(str(source.path), load_external_data=False)
        _answer_with_scores(self._model.graph)
        self._probes = list(probes)
        session = self._session(self._model)
        self._expected = [session.run(probe) for probe in self._probes]
        self._signal = {name: _power(answer[name] for answer in self._expected) for name in session.output_names}

    def errors(self, tensor: str, candidates: Sequence[QuantParams]) -> list[float]:
        """Return the noise-to-signal ratio of the answers with each candidate's int8 in the place of ``tensor``.

        Sums over samples are rounded once, so that their order makes no difference.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        _quantize(model.graph, tensor)
        session = self._session(model)
        return [self._error(session, params) for params in candidates]

    def _error(self, session: OnnxSession, params: QuantParams) -> float:
        given: Arrays = {_SCALE: np.array(params.scale, np.float32), _ZERO_POINT: np.array(params.zero_point, np.int8)}
        answers = [session.run({**probe, **given}) for probe in self._probes]
        noise = {
            name: _power(
                answer[name].astype(np.float64) - expected[name].astype(np.float64)
                for answer, expected in zip(answers, self._expected, strict=True)
            )
            for name in self._signal
        }
        return math.fsum(power / (self._signal[name] or 1.0) for name, power in noise.items())

    def _session(self, model: onnx.ModelProto) -> OnnxSession:
        return OnnxSession(model.SerializeToString(), external_data_folder=self._folder)


def _answer_with_scores(graph: onnx.GraphProto) -> None:
    """Replace each output that a Softmax or Sigmoid writes by what that reads."""
    producers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        producer = producers.get(output.name)
        if producer is not None and producer.op_type in _SQUASHING:
            output.name = producer.input[0]


def _quantize(graph: onnx.GraphProto, tensor: str) -> None:
    """Give every reader of ``tensor`` what int8 makes of it; scale and zero point become inputs of the graph."""
    for node in graph.node:
        node.input[:] = [_REAL if name == tensor else name for name in node.input]
    produced_at = next((index for index, node in enumerate(graph.node) if tensor in node.output), -1)
    nodes = [
        helper.make_node("QuantizeLinear", [tensor, _SCALE, _ZERO_POINT], [_INTEGERS], name="~quantize"),
        helper.make_node("DequantizeLinear", [_INTEGERS, _SCALE, _ZERO_POINT], [_REAL], name="~dequantize"),
    ]
    for place, node in enumerate(nodes, start=produced_at + 1):
        graph.node.insert(place, node)
    for name, dtype in ((_SCALE, onnx.TensorProto.FLOAT), (_ZERO_POINT, onnx.TensorProto.INT8)):
        graph.input.append(helper.make_tensor_value_info(name, dtype, []))


def _power(arrays: Iterable[NDArray[np.generic]]) -> float:
    return math.fsum(float(np.sum(array.astype(np.float64) ** 2)) for array in arrays)
