"""What each quantizer group costs by itself: the noise at the output when nothing else is quantized.

One graph serves all passes: behind each Q/DQ pair and each dequantized constant stands a Where that takes the quantized
or the float value, by a switch for each group. No labels are needed and no held-out sample is looked at, and a group's
damage shows even where several others are as bad, which leaving out one at a time would hide.

Source of the idea: Dong et al., "HAWQ", arXiv 1905.03696 (rank layers by what each costs alone); ours is plain noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.accuracy.groups import QuantizerGroup
from edgeopt.quantize.qdq import canonical_gemms
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.stage import report_progress


@dataclass(frozen=True)
class Damage:
    """Noise power over signal power at the output: with all of a group quantized, and with its constants alone.

    The second is what wider activations would leave.
    """

    total: float
    constants: float


def damages(
    quantized: ir.Model,
    source: ir.Model,
    groups: Sequence[QuantizerGroup],
    samples: Sequence[Sample],
    outputs: Sequence[str],
) -> list[Damage]:
    """Return the damage of each group, the mean over samples and outputs.

    Args:
        quantized: the QDQ graph; it is changed.
        source: the float graph that it was made of; it is changed.
        groups: from :func:`edgeopt.accuracy.groups.quantizer_groups`.
        samples: calibration samples.
        outputs: which ones to look at.
    """
    switches = _add_switches(quantized, source, groups)
    session = OnnxSession(ir.to_proto(quantized).SerializeToString())
    reference = [session.run({**sample.inputs, **_set(switches, ())}) for sample in samples]

    def noise(*on: str) -> float:
        chosen = _set(switches, on)
        return float(np.mean([
            _noise_share(answers[name], session.run({**sample.inputs, **chosen})[name])
            for sample, answers in zip(samples, reference, strict=True)
            for name in outputs
        ]))  # fmt: skip

    found = []
    for index in range(len(groups)):
        found.append(Damage(noise(*_switches_of(index)), noise(_switches_of(index)[1])))
        report_progress("sensitivity", index + 1, len(groups))
    return found


def _add_switches(quantized: ir.Model, source: ir.Model, groups: Sequence[QuantizerGroup]) -> list[str]:
    """Put a Where behind everything that is quantized; return the names of the switches, inputs of the graph."""
    graph = quantized.graph
    canonical_gemms(source.graph)
    floats = {str(node.name): node for node in source.graph}
    tensors = {name: _switches_of(index)[0] for index, group in enumerate(groups) for name in group.tensors}
    constants = {name: _switches_of(index)[1] for index, group in enumerate(groups) for name in group.constants}
    switches: dict[str, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "QuantizeLinear" and (name := _tensor_of(node, tensors)) is not None:
            (use,) = node.outputs[0].uses()
            _insert_where(graph, _switch(switches, tensors[name]), use.node, node.inputs[0])
        elif (
            node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is not None
        ):
            (use,) = node.outputs[0].uses()
            given = floats[str(use.node.name)].inputs[use.idx] if str(use.node.name) in constants else None
            if given is not None and given.const_value is not None:
                _insert_where(graph, _switch(switches, constants[str(use.node.name)]), node, _copied(graph, given))
    graph.inputs.extend(switches.values())
    return list(switches)


def _insert_where(graph: ir.Graph, switch: ir.Value, dequantize: ir.Node, given: ir.Value | None) -> None:
    result = dequantize.outputs[0]
    chosen = ir.node("Where", [switch, result, given], name=f"{dequantize.name}.switched")
    chosen.outputs[0].type, chosen.outputs[0].shape = result.type, result.shape
    chosen.outputs[0].name = f"{result.name}.switched"
    for use in list(result.uses()):
        if use.node is not chosen:
            use.node.replace_input_with(use.idx, chosen.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is result:
            name = result.name
            result.name, chosen.outputs[0].name = f"{name}.quantized_alone", name
            graph.outputs[index] = chosen.outputs[0]
    graph.insert_after(dequantize, chosen)


def _tensor_of(quantize: ir.Node, known: Mapping[str, str]) -> str | None:
    """Return the float tensor that a QuantizeLinear is named after; a second one of a tensor is of another width."""
    stem = str(quantize.name).removesuffix(".quantize")
    return next((name for name in (stem, stem.rpartition(".")[0]) if name in known), None)


def _copied(graph: ir.Graph, value: ir.Value) -> ir.Value:
    assert value.const_value is not None
    name = f"{value.name}.float"
    if name not in graph.initializers:
        data = value.const_value.numpy()
        tensor = ir.tensor(data, name=name)
        copy = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(copy)
    return graph.initializers[name]


def _switches_of(index: int) -> tuple[str, str]:
    return f"switch.{index}.tensors", f"switch.{index}.constants"


def _switch(switches: dict[str, ir.Value], name: str) -> ir.Value:
    if name not in switches:
        switches[name] = ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.BOOL))
    return switches[name]


def _set(switches: Sequence[str], on: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    return {name: np.array([name in on]) for name in switches}


def _noise_share(reference: NDArray[np.generic], actual: NDArray[np.generic]) -> float:
    """Return the power of the difference over that of the reference; of nothing at all, the power itself."""
    wanted, got = reference.astype(np.float64), actual.astype(np.float64)
    signal = float((wanted**2).sum())
    return float(((wanted - got) ** 2).sum()) / (signal or 1.0)
