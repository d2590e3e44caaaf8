"""int8 weights with activations that are quantized while the network runs: the QDQ graph, ONNX Runtime, LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from float_graphs import dequantizer, node, quantized, write_graph

from edgeopt.errors import QuantizationError
from edgeopt.parity import sqnr_db
from edgeopt.quantize.audit import audit_onnxruntime
from edgeopt.quantize.unsigned import with_unsigned_activations
from edgeopt.session import OnnxSession
from edgeopt.tflite.inspect import read_tflite
from edgeopt.tflite.lower import lower

ROUNDING_DB = 100.0  # what float32 sums in another order are apart; one step of 8 bits is below 60

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "matrix": (RANDOM.standard_normal((24, 8)) * RANDOM.uniform(0.1, 3, 8)).astype(np.float32),
    "gemm": RANDOM.standard_normal((8, 24)).astype(np.float32),
    "filters": (RANDOM.standard_normal((8, 3, 3, 3)) * RANDOM.uniform(0.1, 3, (8, 1, 1, 1))).astype(np.float32),
    "bias": RANDOM.standard_normal(8).astype(np.float32),
}
PADDED = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
CASES = {
    "MatMul": ([node("MatMul", "x matrix", "p"), node("Add", "p bias", "y")], (1, 5, 24)),
    "Gemm": ([node("Gemm", "x gemm bias", "y", transB=1)], (1, 24)),
    "Conv": ([node("Conv", "x filters bias", "y", **PADDED)], (1, 3, 8, 8)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, tmp_path)


class Case:
    """One operator in all of its forms, and what it should answer by arithmetic of our own."""

    def __init__(self, name: str, folder: Path) -> None:
        nodes, shape = CASES[name]
        used = {item for entry in nodes for item in entry.input}
        source = write_graph(folder, nodes, {key: WEIGHTS[key] for key in used & WEIGHTS.keys()}, shape)
        self.name, self.folder, self.source = name, folder, source
        self.model = quantized(source, {}, precision="dynamic")
        # Rows of very different size, one far from 0 on one side and one of zeros.
        self.x = np.random.default_rng(1).uniform(-1, 3, shape).astype(np.float32)
        if name == "MatMul":
            self.x *= np.array([0.01, 1, 100, 0, 1], np.float32)[:, np.newaxis]
            self.x[0, 4] += 7

    def expected(self) -> np.ndarray:
        """Quantize what comes in with NumPy, and let the float graph compute with the stored weights."""
        quantizer, (integers, scales, _) = dequantizer(self.model, self.name, 1)
        axis = next(item.i for item in quantizer.attribute if item.name == "axis")
        stored = integers * scales.reshape([-1 if place == axis else 1 for place in range(integers.ndim)])
        graph = onnx.load(str(self.source.path))
        for tensor in graph.graph.initializer:
            if tensor.name in ("matrix", "gemm", "filters"):
                tensor.CopyFrom(onnx.numpy_helper.from_array(stored.astype(np.float32), tensor.name))
        axes = (1, 2, 3) if self.name == "Conv" else -1
        rounded = in_eight_bits(self.x, axes)
        return only(OnnxSession(graph.SerializeToString()).run({"x": rounded}))

    def x86(self) -> Path:
        path = self.folder / "x86.onnx"
        ir.save(with_unsigned_activations(ir.from_proto(self.model)), path)
        return path

    def tflite(self) -> bytes:
        return lower(ir.from_proto(self.model))


def in_eight_bits(x: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    """Return 255 steps between the least and the largest value, 0 among them."""
    low, high = (f(0, g(x, axis=axes, keepdims=True)) for f, g in ((np.minimum, np.min), (np.maximum, np.max)))
    scale = np.where(high > low, (high - low) / 255, 1)
    zero_point = np.rint(-low / scale)
    return ((np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale).astype(np.float32)


def only(answers: dict[str, np.ndarray]) -> np.ndarray:
    (answer,) = answers.values()
    return answer


def litert(content: bytes, **options: object) -> Callable[[np.ndarray], np.ndarray]:
    runner = Interpreter(model_content=content, num_threads=1, **options).get_signature_runner()
    return lambda x: only(runner(x=x))


def test_qdq_graph_rounds_each_row_when_it_runs_as_written(case: Case) -> None:
    session = OnnxSession(case.model.SerializeToString(), optimize=False)
    assert sqnr_db(case.expected(), only(session.run({"x": case.x}))) > ROUNDING_DB


def test_x86_graph_multiplies_integers_when_a_node_is_dynamic(case: Case) -> None:
    path = case.x86()
    assert sqnr_db(case.expected(), only(OnnxSession(path).run({"x": case.x}))) > ROUNDING_DB
    found = audit_onnxruntime(path, "ONNX Runtime")
    assert found.integer_coverage == 1.0
    assert found.operators.keys() & {"MatMulInteger", "ConvInteger"}
    assert not {item.domain for item in onnx.load(str(path)).graph.node} - {""}  # any ONNX runtime takes it


@pytest.mark.parametrize("kernels", [OpResolverType.AUTO, OpResolverType.BUILTIN, OpResolverType.BUILTIN_REF])
def test_litert_rounds_each_row_as_the_graph_says_when_a_node_is_dynamic(case: Case, kernels: OpResolverType) -> None:
    answer = litert(case.tflite(), experimental_op_resolver_type=kernels)(case.x)
    actual = answer.transpose(0, 3, 1, 2) if answer.shape[-1:] != case.expected().shape[-1:] else answer
    assert sqnr_db(case.expected(), actual) > ROUNDING_DB
    assert sqnr_db(only(OnnxSession(case.source.path).run({"x": case.x})), actual) < 60  # not float in secret


def test_tflite_file_has_the_version_that_knows_scales_of_channels_when_a_node_is_dynamic(case: Case) -> None:
    (operator,) = [item for item in read_tflite(case.tflite()).operators if item.macs]
    assert (operator.builtin, operator.version) in {("FULLY_CONNECTED", 12), ("CONV_2D", 5)}
    assert (operator.is_dynamic, operator.is_integer) == (True, True)
    assert [tensor.dtype for tensor in operator.inputs] == ["float32", "int8", "float32"]


def test_xnnpack_takes_the_operator_when_a_node_is_dynamic(case: Case) -> None:
    interpreter = Interpreter(model_content=case.tflite(), num_threads=1)
    interpreter.allocate_tensors()
    assert "DELEGATE" in {item["op_name"] for item in interpreter._get_ops_details()}


def test_quantize_shares_one_pair_when_several_products_read_a_tensor(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x matrix", "a"), node("MatMul", "x matrix", "b"), node("Add", "a b", "y")]
    source = write_graph(tmp_path, nodes, {"matrix": WEIGHTS["matrix"]}, (1, 5, 24))
    model = quantized(source, {}, nodes=dict.fromkeys(("MatMul_a", "MatMul_b"), "dynamic"))
    assert [item.op_type for item in model.graph.node if item.domain] == ["Quantize", "Dequantize"]
    x86 = ir.to_proto(with_unsigned_activations(ir.from_proto(model)))
    assert [item.op_type for item in x86.graph.node].count("Round") == 1


def test_quantize_leaves_float_what_has_no_dynamic_kernel_when_the_whole_graph_is_dynamic(tmp_path: Path) -> None:
    depthwise = np.ones((3, 1, 3, 3), np.float32)
    nodes = [node("Conv", "x depthwise", "a", group=3), node("Sigmoid", "a", "s"), node("Conv", "s filters", "y")]
    source = write_graph(tmp_path, nodes, {"depthwise": depthwise, "filters": WEIGHTS["filters"]}, (1, 3, 8, 8))
    model = quantized(source, {}, precision="dynamic")
    assert [item.op_type for item in model.graph.node] == [
        "Conv", "Sigmoid", "Quantize", "Dequantize", "DequantizeLinear", "Conv",
    ]  # fmt: skip


def test_quantize_refuses_a_dynamic_node_when_no_runtime_has_its_kernel(tmp_path: Path) -> None:
    nodes = [node("Conv", "x filters", "a"), node("Relu", "a", "y")]
    source = write_graph(tmp_path, nodes, {"filters": WEIGHTS["filters"]}, (1, 3, 8, 8))
    with pytest.raises(QuantizationError, match=r"quantize\.nodes: Relu 'Relu_y' has no dynamic kernel"):
        quantized(source, {}, nodes={"Relu_y": "dynamic"})


def test_runtimes_agree_when_dynamic_and_static_nodes_stand_side_by_side(tmp_path: Path) -> None:
    chain = (("Conv", "x filters", "a"), ("Relu", "a", "b"), ("Conv", "b wide", "c"), ("Relu", "c", "y"))
    wide = np.random.default_rng(2).standard_normal((4, 8, 1, 1)).astype(np.float32)
    source = write_graph(
        tmp_path, [node(*item) for item in chain], {"filters": WEIGHTS["filters"], "wide": wide}, (1, 3, 8, 8)
    )
    ranges = {"x": (-1.0, 3.0), "b": (0.0, 60.0), "y": (0.0, 300.0)}
    model = quantized(source, ranges, nodes={"Conv_c": "dynamic", "Relu_y": "float"})
    x = np.random.default_rng(1).uniform(-1, 3, (1, 3, 8, 8)).astype(np.float32)
    path = tmp_path / "x86.onnx"
    ir.save(with_unsigned_activations(ir.from_proto(model)), path)
    reference = only(OnnxSession(path).run({"x": x}))
    content = lower(ir.from_proto(model), integer_io=False)
    assert read_tflite(content).integer_coverage == audit_onnxruntime(path, "").integer_coverage == 1.0
    assert sqnr_db(reference, litert(content)(x)) > 40  # values on one grid lie on ties of another
