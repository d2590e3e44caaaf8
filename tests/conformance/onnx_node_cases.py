"""ONNX's own node cases: one operator each, with inputs and expected outputs that its authors wrote.

*All cases* are those with tensors only, of dtypes that TFLite shares with ONNX, in opset 13 or later, or of an operator
that opset 13 left as it was. *Expressible* among them are those whose operator is not in ``out_of_scope.toml`` and that
do not train. What is not data but a parameter (shapes, axes, pads, weights) is frozen to an initializer, as exporters
write it.

Run as a program, it judges all cases but those named on standard input, and prints a JSON line before and behind each.
The tests do that, because a kernel that crashes takes its process with it, and then the case can be named.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from edgeopt.errors import LoweringError
from edgeopt.tflite.lower import lower

_DTYPES = frozenset({TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL})
_OLDEST_OPSET = 13
_ALL = range(1, 16)
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
# operator -> inputs that are parameters, not data
_PARAMETERS: dict[str, Sequence[int]] = {
    **dict.fromkeys(
        ["Reshape", "Expand", "Tile", "Pad", "Slice", "Resize", "Upsample", "TopK", "Trilu", "Squeeze", "Unsqueeze"],
        _ALL,
    ),
    **dict.fromkeys(
        ["Split", "CumSum", "CumProd", "OneHot", "Dropout", "Clip", "CenterCropPad", "ReverseSequence"], _ALL
    ),
    **dict.fromkeys(["BatchNormalization", "Conv", "ConvTranspose", "Gemm", "PRelu", "DeformConv"], _ALL),
    **dict.fromkeys(["InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"], _ALL),
    **dict.fromkeys(["QuantizeLinear", "DequantizeLinear", "LSTM", "GRU", "RNN", "AffineGrid", "Col2Im"], _ALL),
    **dict.fromkeys(["Gather", "GatherND", "GatherElements", "CastLike"], _ALL),
    **dict.fromkeys(["ScatterND", "ScatterElements", "Scatter"], (1,)),
    **dict.fromkeys(
        ["Range", "ConstantOfShape", "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"], range(16)
    ),
    "NonMaxSuppression": range(2, 16),
    **dict.fromkeys([f"Reduce{kind}" for kind in _REDUCTIONS.split()], _ALL),
    "DFT": _ALL,
    "CausalConvWithState": (1, 2),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``passed``, ``refused``, ``wrong``, ``rejected`` by LiteRT, ``crashed``."""

    name: str
    verdict: str
    reason: str = ""


@cache
def cases_in_scope() -> dict[str, Any]:
    """Return the cases by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of ONNX's own cases divide by zero on purpose
        from onnx.backend.test.case.node import collect_testcases

        return {case.name: case for case in collect_testcases(None) if _is_in_scope(case)}


def _is_in_scope(case: Any) -> bool:
    graph = case.model.graph
    opsets = {entry.domain: entry.version for entry in case.model.opset_import}
    values = [value.type for value in (*graph.input, *graph.output)]
    return (
        "_expanded" not in case.name
        and set(opsets) <= {"", "ai.onnx"}
        and (max(opsets.values()) >= _OLDEST_OPSET or _is_unchanged(operator_of(case), max(opsets.values())))
        and all(value.HasField("tensor_type") and value.tensor_type.elem_type in _DTYPES for value in values)
    )


def _is_unchanged(op_type: str, opset: int) -> bool:
    """Whether an operator of an older opset means the same in the oldest that we lower."""
    then, now = (onnx.defs.get_schema(op_type, version, "") for version in (opset, _OLDEST_OPSET))
    return then.since_version == now.since_version and not now.deprecated


def operator_of(case: Any) -> str:
    """Return the operator that a case is about."""
    return case.model.graph.node[0].op_type


@cache
def operators_out_of_scope() -> dict[str, str]:
    """Return the operators that TFLite cannot express, and why."""
    listed = tomllib.loads(Path(__file__).with_name("out_of_scope.toml").read_text())
    return {operator: reason for reason, operators in listed.items() for operator in operators}


def is_expressible(case: Any) -> bool:
    """Whether TFLite's operators can express what a case asks for."""
    return operator_of(case) not in operators_out_of_scope() and not _trains(case)


def _trains(case: Any) -> bool:
    """Whether the case is about training: statistics that change, or elements dropped at random."""
    node, (inputs, _) = case.model.graph.node[0], case.data_sets[0]
    by_attribute = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    return by_attribute or (node.op_type == "Dropout" and len(inputs) > 2 and bool(inputs[2]))


def frozen(case: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the case's model with its parameters as initializers, and the arrays that remain inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for entry in model.opset_import:
        entry.version = max(entry.version, _OLDEST_OPSET)
    node, arrays = (
        model.graph.node[0],
        dict(zip([i.name for i in model.graph.input], case.data_sets[0][0], strict=True)),
    )
    parameters = {node.input[i] for i in _PARAMETERS.get(node.op_type, ()) if i < len(node.input) and node.input[i]}
    for value in [value for value in model.graph.input if value.name in parameters]:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(arrays.pop(value.name)), value.name))
        model.graph.input.remove(value)
    return model, {name: np.asarray(array) for name, array in arrays.items()}


def judge(case: Any) -> Outcome:
    """Lower a case, run it in LiteRT and compare."""
    model, feeds = frozen(case)
    try:
        content = lower(ir.from_proto(model))
    except LoweringError as error:
        reason = error.refusals[0] if error.refusals else error.message
        return Outcome(case.name, "refused", str(reason))
    try:
        answers = _run(content, feeds)
    except (RuntimeError, ValueError) as error:
        return Outcome(case.name, "rejected", str(error)[:300])
    names = [output.name for output in model.graph.output]
    for name, expected in zip(names, case.data_sets[0][1], strict=True):
        if difference := _difference(np.asarray(expected), answers[name], case):
            return Outcome(case.name, "wrong", f"{name}: {difference}"[:300])
    return Outcome(case.name, "passed")


def _run(content: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner()
    return dict(runner(**feeds))


def _difference(expected: np.ndarray, actual: np.ndarray, case: Any) -> str:
    if (expected.dtype, expected.shape) != (actual.dtype, actual.shape):
        return f"got {actual.dtype} {actual.shape}, expected {expected.dtype} {expected.shape}"
    try:
        np.testing.assert_allclose(actual, expected, rtol=case.rtol, atol=case.atol)
    except AssertionError as error:
        return " ".join(str(error).split())
    return ""


def judge_apart() -> list[Outcome]:
    """Judge all cases in a process of its own, and what is left in a new one behind each that crashed."""
    outcomes: list[Outcome] = []
    while True:
        process = subprocess.run(
            [sys.executable, "-W", "ignore", str(Path(__file__).resolve())],
            input="\n".join(outcome.name for outcome in outcomes),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
        outcomes += [Outcome(**line) for line in lines if "verdict" in line]
        if process.returncode == 0:
            return outcomes
        if not lines:
            raise RuntimeError(process.stderr)
        outcomes.append(Outcome(lines[-1]["name"], "crashed", process.stderr.strip()[-1500:]))


def _judge_the_rest(done: frozenset[str]) -> None:
    for name, case in cases_in_scope().items():
        if name not in done:
            print(json.dumps({"name": name}), flush=True)
            print(json.dumps(asdict(judge(case))), flush=True)


if __name__ == "__main__":
    _judge_the_rest(frozenset(sys.stdin.read().split()))
