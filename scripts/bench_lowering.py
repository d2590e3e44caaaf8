"""Time and memory of lowering alone: a network's QDQ file to bytes on disk, and chains of more and more nodes.

Each is measured in a process of its own that has imported edgeopt before the clock starts. Memory is the largest
resident set of that whole process, its imports included.

    python bench_lowering.py model.onnx model.tflite REPEATS    such a process; prints what it took as JSON
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_figures import Figure
from bench_network import Network, NotMeasured, last_line
from bench_timing import load, own_peak_bytes, run_watched
from onnx import TensorProto, helper, numpy_helper

from edgeopt.conversion import convert

_REPEATS = 5
_CHAINS = (100, 1_000, 10_000)
_CHAIN_ROUNDS = 3
_BLOCK = 10  # nodes that _add_block adds


def lowering_figures(network: Network) -> Iterator[Figure]:
    """Lower the QDQ graph that all the bundles with asymmetric activations come from."""
    taken = _converted(network.qdq_graph, network.folder / "lowered.tflite", _REPEATS)

    def figure(name: str, value: float | None, unit: str, remark: str) -> Figure:
        return Figure("lowering", network.name, name, value, unit, remark)

    sizes = f"{network.qdq_graph.stat().st_size:,} bytes to {taken['bytes']:,}"
    first, *others = taken["seconds"]
    yield figure("QDQ file to .tflite file, first call", first, "s", f"{sizes}, packages imported before; {load()}")
    yield figure("QDQ file to .tflite file, later calls", statistics.median(others), "s", f"median of {len(others)}")
    if taken["peak_bytes"] is None:
        yield figure("peak memory", None, "MB", "this system has no /proc")
        return
    imports = f"{taken['imported_bytes'] / 1e6:.0f} MB of them before the first call"
    yield figure("peak memory", taken["peak_bytes"] / 1e6, "MB", f"resident, whole process, {imports}")


def chain_figures() -> Iterator[Figure]:
    """Lower chains of quantized and float nodes, in turns, and compare the CPU time that one node takes."""
    busy = load()
    with tempfile.TemporaryDirectory() as scratch:
        taken: dict[int, list[float]] = {length: [] for length in _CHAINS}
        for length in _CHAINS:
            onnx.save(chain(length), Path(scratch, f"{length}.onnx"))
        for _ in range(_CHAIN_ROUNDS):
            for length, seconds in taken.items():
                found = _converted(Path(scratch, f"{length}.onnx"), Path(scratch, f"{length}.tflite"), 2)
                seconds.append(found["cpu_seconds"][-1])
    for length, seconds in taken.items():
        name = f"{length:,} nodes, CPU time per node"
        remark = f"{statistics.median(seconds):.3f} s in all, median of {_CHAIN_ROUNDS} second calls; {busy}"
        yield Figure("lowering", "chain", name, 1000 * statistics.median(seconds) / length, "ms", remark)
    ratios = sorted(long / 10 / short for short, long in zip(taken[_CHAINS[1]], taken[_CHAINS[2]], strict=True))
    remark = f"rounds from {ratios[0]:.2f} to {ratios[-1]:.2f}; 1 would be linear"
    name = f"CPU time per node, {_CHAINS[2]:,} nodes / {_CHAINS[1]:,}"
    yield Figure("lowering", "chain", name, statistics.median(ratios), "x", remark)


def chain(length: int) -> onnx.ModelProto:
    """Return a graph of so many nodes, in blocks of ten: a quantized Conv with Relu, and a transposed Sigmoid in float.

    Raises:
        ValueError: if the blocks do not fill it.
    """
    if length % _BLOCK:
        raise ValueError(f"a chain has a multiple of {_BLOCK} nodes, got {length}")
    ends = ("x0", f"x{length // _BLOCK}")
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ends)
    graph = helper.make_graph([], "chain", [given], [result])
    graph.initializer.append(numpy_helper.from_array(np.float32(0.05), "scale"))
    graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    for index in range(length // _BLOCK):
        _add_block(graph, index)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def _add_block(graph: onnx.GraphProto, index: int) -> None:
    weight = np.random.default_rng(index).integers(-127, 128, (4, 4, 1, 1), np.int8)
    graph.initializer.append(numpy_helper.from_array(weight, f"w{index}"))

    def add(op_type: str, inputs: str, output: str, **attributes: list[int]) -> None:
        names = [name if name in ("scale", "zero") else f"{name}{index}" for name in inputs.split()]
        graph.node.append(helper.make_node(op_type, names, [output], name=f"n{len(graph.node)}", **attributes))

    add("QuantizeLinear", "x scale zero", f"q{index}")
    add("DequantizeLinear", "q scale zero", f"q_real{index}")
    add("DequantizeLinear", "w scale zero", f"w_real{index}")
    add("Conv", "q_real w_real", f"conv{index}")
    add("Relu", "conv", f"relu{index}")
    add("QuantizeLinear", "relu scale zero", f"y{index}")
    add("DequantizeLinear", "y scale zero", f"y_real{index}")
    add("Transpose", "y_real", f"turned{index}", perm=[0, 2, 3, 1])
    add("Sigmoid", "turned", f"sigmoid{index}")
    add("Transpose", "sigmoid", f"x{index + 1}", perm=[0, 3, 1, 2])


def _converted(source: Path, destination: Path, repeats: int) -> dict[str, Any]:
    finished = run_watched([sys.executable, __file__, str(source), str(destination), str(repeats)])
    if finished.exit_code != 0:
        raise NotMeasured(f"lowering {source.name}: {last_line(finished.errors)}")
    taken: dict[str, Any] = json.loads(last_line(finished.output))
    return taken


def _main(source: str, destination: str, repeats: str) -> None:
    imported, seconds, cpu_seconds = own_peak_bytes(), [], []
    for _ in range(int(repeats)):
        start, cpu_start = time.perf_counter(), time.process_time()
        inspection = convert(source, destination)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    taken = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    taken |= {"imported_bytes": imported, "peak_bytes": own_peak_bytes()}
    sys.stdout.write(json.dumps(taken | {"bytes": inspection.size_bytes}) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
