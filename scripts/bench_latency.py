"""One inference on one thread: int8 against float in each runtime, and against another tool's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from bench_figures import Figure
from bench_network import Network, NotMeasured, as_taken, last_line
from bench_parity import agreement
from bench_timing import Timings, interleaved, load, ratio, run_watched, spread

from edgeopt.samples import Sample
from edgeopt.target import find_target, load_backend
from edgeopt.tflite.inspect import inspect_tflite
from edgeopt.tflite.lower import lower

_REPEATS = 10  # a block of inferences: the first ones of a block find cold caches, its median does not
_PEER_SCRIPT = Path(__file__).with_name("bench_peer_litert_torch.py")


def latency_figures(network: Network, count: int, rounds: int, peer_python: Path | None) -> Iterator[Figure]:
    """Time both runtimes on one held-out sample, count kernels, and compare with the peer's file if there is one."""
    (sample,) = network.samples("held_out", 1)
    yield _paired(network, "x86", _onnx_pair(network, sample), rounds, "ONNX Runtime")
    yield _convolutions(network)
    yield _paired(network, "arm64", _litert_pair(network, sample), rounds, "LiteRT on this machine, not on a board")
    if peer_python is None:
        reason = "no environment given with --peer-python"
        yield Figure("latency", network.name, "arm64: edgeopt / litert-torch", None, "x", reason)
        return
    yield from _beside_peer(network, sample, count, rounds, peer_python)


def _paired(network: Network, target: str, pair: Mapping[str, Callable[[], object]], rounds: int, where: str) -> Figure:
    busy = load()
    taken = interleaved(pair, rounds=rounds, repeats=_REPEATS)
    remark = f"{_both(taken['float'], taken['int8'])}, {where}; {spread(taken['float'], taken['int8'])}; {busy}"
    return Figure("latency", network.name, f"{target}: float / int8", ratio(taken["float"], taken["int8"]), "x", remark)


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


def _beside_peer(network: Network, sample: Sample, count: int, rounds: int, peer_python: Path) -> Iterator[Figure]:
    path = network.folder / "peer.tflite"
    versions = make_peer_file(network, peer_python, path)
    ours, theirs = _interpreter(network.model("arm64")), _interpreter(path)
    pair = {"ours": _invoke(ours, network, sample), "theirs": _invoke(theirs, network, sample)}
    busy = load()
    taken = interleaved(pair, rounds=rounds, repeats=_REPEATS)
    tools = ", ".join(f"{name} {version}" for name, version in versions.items())
    remark = f"{_both(taken['ours'], taken['theirs'])}; {spread(taken['ours'], taken['theirs'])}; {tools}; {busy}"
    name = "arm64: edgeopt / litert-torch"
    yield Figure("latency", network.name, name, ratio(taken["ours"], taken["theirs"]), "x", remark)
    for label, file in (("edgeopt", network.model("arm64")), ("litert-torch", path)):
        facts = inspect_tflite(file)
        remark = f"{facts.integer_operators} on integers, {facts.size_bytes:,} bytes"
        yield Figure("latency", network.name, f"{label}: operators", facts.num_operators, "operators", remark)
    samples = network.samples("held_out", count)
    reference = network.float_answers(samples)
    (output,) = reference[0]
    for label, interpreter in (("edgeopt", ours), ("litert-torch", theirs)):
        answers = [{output: _answer(interpreter, network, each)} for each in samples]
        yield from agreement(network.name, label, samples, reference, answers)


def make_peer_file(network: Network, peer_python: Path, path: Path) -> dict[str, str]:
    """Let the peer convert the same network with the same calibration samples; return its versions.

    Raises:
        NotMeasured: if it cannot.
    """
    import torch

    from edgeopt.artifacts import TorchModel
    from edgeopt.compress.rebuild import rebuild
    from edgeopt.source import example_inputs

    recipe = network.loaded.recipe
    if recipe.train is not None or recipe.prune is not None or recipe.model.path is not None:
        raise NotMeasured("the peer is given networks with published weights only")
    module = rebuild(recipe.model, network.loaded.folder, TorchModel())
    program, stored = network.folder / "peer.pt2", network.folder / "peer.npy"
    torch.export.save(torch.export.export(module, example_inputs(recipe.model)), program)
    samples = network.samples("calibration", recipe.calibration.num_samples)
    (name,) = recipe.model.inputs
    np.save(stored, np.stack([sample.inputs[name] for sample in samples]))
    finished = run_watched([str(peer_python), str(_PEER_SCRIPT), str(program), str(stored), str(path)])
    if finished.exit_code != 0:
        raise NotMeasured(f"litert-torch: {last_line(finished.errors)}")
    versions: dict[str, str] = json.loads(last_line(finished.output))
    return versions


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
