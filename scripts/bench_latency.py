"""One inference on one thread: int8 against float in each runtime, and against other tools' files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from bench_figures import Figure
from bench_network import Network, NotMeasured, as_taken
from bench_parity import agreement
from bench_peers import Peer
from bench_timing import Timings, interleaved, load, ratio, spread

from edgeopt.samples import Sample
from edgeopt.target import find_target, load_backend
from edgeopt.tflite.inspect import inspect_tflite
from edgeopt.tflite.lower import lower

_LITERT = "LiteRT on this machine, not on a board"
_REPEATS = 10  # a block of inferences: the first ones of a block find cold caches, its median does not


def latency_figures(network: Network, count: int, rounds: int, peers: Sequence[Peer]) -> Iterator[Figure]:
    """Time both runtimes on one held-out sample, count kernels, and compare with the peers' files."""
    (sample,) = network.samples("held_out", 1)
    yield _paired(network, "x86", _onnx_pair(network, sample), rounds, "ONNX Runtime")
    yield _convolutions(network)
    yield _paired(network, "arm64", _litert_pair(network, sample), rounds, _LITERT)
    for name in sorted({"litert-torch", "onnx2tf 1"} - {peer.name for peer in peers}):
        reason = "no environment given with --peer-python"
        yield Figure("latency", network.name, f"arm64: edgeopt / {name}", None, "x", reason)
    if peers:
        yield from _beside_peers(network, sample, count, rounds, peers)


def litert_ratio(network: Network, floating: Path, integer: Path, sample: Sample, rounds: int) -> tuple[float, str]:
    """Return how much longer a float file takes than an int8 one in LiteRT, and a remark on the timings."""
    files = {"float": floating, "int8": integer}
    pair = {name: _invoke(_interpreter(path), network, sample) for name, path in files.items()}
    return _float_over_int8(pair, rounds, _LITERT)


def _paired(network: Network, target: str, pair: Mapping[str, Callable[[], object]], rounds: int, where: str) -> Figure:
    value, remark = _float_over_int8(pair, rounds, where)
    return Figure("latency", network.name, f"{target}: float / int8", value, "x", remark)


def _float_over_int8(pair: Mapping[str, Callable[[], object]], rounds: int, where: str) -> tuple[float, str]:
    busy = load()
    taken = interleaved(pair, rounds=rounds, repeats=_REPEATS)
    remark = f"{_both(taken['float'], taken['int8'])}, {where}; {spread(taken['float'], taken['int8'])}; {busy}"
    return ratio(taken["float"], taken["int8"]), remark


def _onnx_pair(network: Network, sample: Sample) -> dict[str, Callable[[], object]]:
    return {
        "float": _onnx_action(network.float_graph.path, dict(sample.inputs)),
        "int8": _onnx_action(network.model("x86"), network.fed("x86", sample)),
    }


def _litert_pair(network: Network, sample: Sample) -> dict[str, Callable[[], object]]:
    """Return both; the float file is the float graph, lowered by the same code and channels last too."""
    layouts = {facts["name"]: facts["layout"] for facts in network.manifests["arm64"]["inputs"]}
    images = {name: layout for name, layout in layouts.items() if layout != "any"}
    path = network.folder / "float.tflite"
    path.write_bytes(lower(ir.load(network.float_graph.path), input_layouts=images))
    return {
        "float": _invoke(_interpreter(path), network, sample),
        "int8": _invoke(_interpreter(network.model("arm64")), network, sample),
    }


def _convolutions(network: Network) -> Figure:
    """Count the convolutions in the graph that ONNX Runtime makes of the bundle when it loads it."""
    in_float = sum(node.op_type == "Conv" for node in ir.load(network.float_graph.path).graph)
    operators = load_backend(find_target("x86")).inspect(network.model("x86")).operators
    on_integers = operators.get("QLinearConv", 0)
    others = ", ".join(f"{name} {number}" for name, number in operators.items() if name != "QLinearConv")
    remark = f"{on_integers} QLinearConv for {in_float} Conv of the float graph; besides {others}"
    if in_float == 0:
        return Figure("latency", network.name, "x86: convolutions on integers", None, "%", "the network has none")
    share = 100 * on_integers / in_float
    return Figure("latency", network.name, "x86: convolutions on integers", share, "%", remark)


def _beside_peers(network: Network, sample: Sample, count: int, rounds: int, peers: Sequence[Peer]) -> Iterator[Figure]:
    """Time our file and the peers' files in one run, in turns."""
    files = {"edgeopt": network.model("arm64")}
    for peer in peers:
        try:
            files[peer.name] = peer.file_of(network)
        except NotMeasured as reason:
            yield Figure("latency", network.name, f"arm64: edgeopt / {peer.name}", None, "x", f"{peer.tools}: {reason}")
    opened = {name: _interpreter(path) for name, path in files.items()}
    busy = load()
    actions = {name: _invoke(interpreter, network, sample) for name, interpreter in opened.items()}
    taken = interleaved(actions, rounds=rounds, repeats=_REPEATS)
    for peer in (peer for peer in peers if peer.name in files):
        ours, theirs = taken["edgeopt"], taken[peer.name]
        remark = f"{_both(ours, theirs)}; {spread(ours, theirs)}; {peer.tools}; {busy}"
        yield Figure("latency", network.name, f"arm64: edgeopt / {peer.name}", ratio(ours, theirs), "x", remark)
    yield from _operators(network, files)
    samples = network.samples("held_out", count)
    reference = network.float_answers(samples)
    (output,) = reference[0]
    for name, interpreter in opened.items():
        answers = [{output: _answer(interpreter, network, each)} for each in samples]
        yield from agreement(network.name, name, samples, reference, answers)


def _operators(network: Network, files: Mapping[str, Path]) -> Iterator[Figure]:
    """Count the operators of each file, and how many more ours has than the shortest of the others."""
    facts = {name: inspect_tflite(path) for name, path in files.items()}
    for name, found in facts.items():
        remark = f"{found.integer_operators} on integers, {found.size_bytes:,} bytes"
        yield Figure("latency", network.name, f"{name}: operators", found.num_operators, "operators", remark)
    others = [found.num_operators for name, found in facts.items() if name != "edgeopt"]
    if others:
        more = facts["edgeopt"].num_operators - min(others)
        yield Figure("latency", network.name, "more operators than the fewest of a peer", more, "operators")


def _onnx_action(path: Path, inputs: dict[str, Any]) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def _interpreter(path: Path) -> Any:
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _invoke(interpreter: Any, network: Network, sample: Sample) -> Callable[[], object]:
    _set_input(interpreter, network, sample)
    invoke: Callable[[], object] = interpreter.invoke
    return invoke


def _set_input(interpreter: Any, network: Network, sample: Sample) -> None:
    """Feed one image, channels last, in whatever dtype the file takes."""
    (details,) = interpreter.get_input_details()
    ((name, array),) = sample.inputs.items()
    scale, zero_point = details["quantization"]
    facts = {"dtype": np.dtype(details["dtype"]).name, "scale": scale, "zero_point": zero_point, "layout": "NHWC"}
    interpreter.set_tensor(details["index"], as_taken(array, network.inputs[name].layout, facts))


def _answer(interpreter: Any, network: Network, sample: Sample) -> Any:
    _set_input(interpreter, network, sample)
    interpreter.invoke()
    (details,) = interpreter.get_output_details()
    values = interpreter.get_tensor(details["index"])
    scale, zero_point = details["quantization"]
    return (values.astype(np.float64) - zero_point) * scale if scale else values.astype(np.float64)


def _both(first: Timings, second: Timings) -> str:
    return f"{first.milliseconds:.2f} / {second.milliseconds:.2f} ms"
