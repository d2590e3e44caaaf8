"""Makes a float ONNX graph clean: constants folded, dead code gone, and what operators mean said by their names.

The runtimes know patterns, and quantization puts Q/DQ around operators. So what one kernel computes has to be one
operator, before anything is quantized.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter, version_converter
from onnxscript.rewriter.rules import common as rules

from edgeopt.gelu import OPSET as GELU_OPSET
from edgeopt.gelu import name_gelus

# The rewriter's rules that change no number. Its defaults also take an addition of 1e-10 for one of nothing, and the
# logarithm behind it for one that is never asked for 0.
_EXACT_RULES = (
    *(rules.one_reshape_matmul_reshape_rule, rules.two_reshapes_matmul_reshape_rule),
    *(rules.cast_constant_of_shape_rule, rules.cast_constant_of_shape_without_value_rule),
    *(rules.collapse_slice_rule, rules.collapse_slice2_rule, rules.slice_split_rule),
    *(rules.materialize_reshape_shape_rule, rules.flatten_to_reshape_rule, rules.reshape_reshape_rule),
    *(rules.squeeze_reshape_1d_rule, rules.unsqueeze_unsqueeze_rule),
    *(rules.min_min_rule, rules.max_max_rule, rules.min_max_rule, rules.max_min_rule),
    *(rules.successive_clip_relu_rule, rules.successive_relu_clip_rule),
    *(rules.successive_relu_rule, rules.successive_clip_rule),
    *(rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule, rules.transpose_transpose_rule),
    *(rules.no_op_dynamic_scatter_nd_rule, rules.no_op_static_scatter_nd_rule),
    *(rules.dropout_zero_rule, rules.dropout_inference_rule),
    *(rules.normalize_pad_format_conv_rule, rules.fuse_pad_into_conv_rule),
    *(rules.fuse_batchnorm_into_conv_rule, rules.fuse_batchnorm_into_conv_transpose_rule),
    rules.fuse_batchnorm_into_gemm_rule,
    *(rules.remove_optional_bias_from_conv_rule, rules.remove_optional_bias_from_conv_transpose_rule),
    *(rules.remove_optional_bias_from_gemm_rule, rules.matmul_add_to_gemm_rule),
)
_HARD_SWISH_OPSET = 14
_LARGEST_FOLDED = 1 << 28  # elements: exporters slice and join the weights of an LSTM, and those are to be one constant
_ROUNDS = 2  # folding makes patterns, and rewriting makes constants


def clean(graph: ir.Model) -> None:
    """Fold constants and batch normalization, drop dead code and the exporter's notes, infer every shape, in place."""
    lift_constants = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    with quiet():
        passes.InlinePass()(graph)
        for _ in range(_ROUNDS):
            optimizer.fold_constants_ir(graph, onnx_shape_inference=True, input_size_limit=_LARGEST_FOLDED)
            lift_constants(graph)
            rewriter.rewrite(graph, _EXACT_RULES)
        _name_biases(graph.graph)
        _name_activations(graph)
        _name_global_pooling(graph.graph)
        _name_channel_scaling(graph.graph)
        _name_products(graph.graph)
        Sequential(
            lift_constants,
            passes.RemoveInitializersFromInputsPass(),
            passes.DeduplicateInitializersPass(),
            passes.CommonSubexpressionEliminationPass(),
            passes.IdentityEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.RemoveUnusedOpsetsPass(),
            passes.TopologicalSortPass(),
            passes.ShapeInferencePass(),
            passes.NameFixPass(),
            passes.ClearMetadataAndDocStringPass(),
        )(graph)
    graph.metadata_props.clear()


def _name_biases(graph: ir.Graph) -> None:
    """Give a convolution the constant that is added to each of its channels as its bias."""
    for node in graph:
        result, readers = node.outputs[0], list(node.outputs[0].consumers())
        if node.op_type != "Conv" or len(node.inputs) != 2 or [reader.op_type for reader in readers] != ["Add"]:
            continue
        total = readers[0].outputs[0]
        constant = next((value.const_value for value in readers[0].inputs if value and value is not result), None)
        if constant is None or result.is_graph_output() or not _is_one_a_channel(constant, result):
            continue
        node.resize_inputs(3)
        node.replace_input_with(2, _initializer(graph, f"{node.name}.bias", constant.numpy().reshape(-1)))
        total.replace_all_uses_with(result, replace_graph_outputs=True)
        total.name, result.name = f"{total.name}.unused", total.name


def _is_one_a_channel(constant: ir.TensorProtocol, result: ir.Value) -> bool:
    if result.shape is None or len(result.shape) < 3 or len(constant.shape) > len(result.shape):
        return False
    channels = result.shape[1]
    wanted = (channels, *[1] * (len(result.shape) - 2))
    return constant.size == channels and tuple(constant.shape)[1 - len(result.shape) :] == wanted


def _name_activations(graph: ir.Model) -> None:
    """Turn what is spelt out into HardSwish and Gelu, in the opset that knows them if the graph can be brought there.

    Each is one kernel then, and what lies inside is not quantized by itself.
    """
    wanted = GELU_OPSET if any(node.op_type == "Erf" for node in graph.graph) else _HARD_SWISH_OPSET
    if graph.opset_imports[""] < wanted:
        version_converter.convert_version(graph, wanted, fallback=True)
    if graph.opset_imports[""] >= GELU_OPSET:
        name_gelus(graph.graph)
    if graph.opset_imports[""] >= _HARD_SWISH_OPSET:
        rewriter.rewrite(graph, rules.fuse_hardswish_rules())


def _name_global_pooling(graph: ir.Graph) -> None:
    """Turn a mean over height and width into GlobalAveragePool, for which every runtime has an integer kernel."""
    for node in graph:
        data = node.inputs[0] if node.inputs else None
        if data is None or data.shape is None or data.shape.rank() != 4:
            continue
        covers = {"ReduceMean": _reduces_pixels, "AveragePool": _covers}.get(node.op_type)
        if covers is not None and covers(node):
            node.op_type = "GlobalAveragePool"
            node.resize_inputs(1)
            node.attributes.clear()


def _reduces_pixels(node: ir.Node) -> bool:
    axes = node.inputs[1].const_value if len(node.inputs) == 2 and node.inputs[1] is not None else None
    if axes is None or not node.attributes.get_int("keepdims", 1):
        return False
    return sorted(int(axis) % 4 for axis in axes.numpy().reshape(-1)) == [2, 3]


def _covers(node: ir.Node) -> bool:
    """Whether the one window of a pooling is the whole picture."""
    data, attributes = node.inputs[0], node.attributes
    assert data is not None
    assert data.shape is not None
    plain = attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and not attributes.get_int("ceil_mode", 0)
    changed = any(attributes.get_ints("pads", ())) or any(size != 1 for size in attributes.get_ints("dilations", ()))
    return plain and not changed and list(attributes.get_ints("kernel_shape")) == list(data.shape)[2:]


def _name_channel_scaling(graph: ir.Graph) -> None:
    """Turn a batch normalization that no convolution took in into a depthwise convolution of one pixel.

    Every runtime has an integer kernel for that, with a scale for each channel.
    """
    for node in graph:
        if node.op_type != "BatchNormalization" or len(node.outputs) != 1:
            continue
        data, *constants = node.inputs
        arrays = [value.const_value.numpy().astype(np.float64) for value in constants if value and value.const_value]
        if data is None or data.shape is None or data.shape.rank() < 3 or len(arrays) != 4:
            continue
        scale, bias, mean, variance = arrays
        factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        pixel = [1] * (data.shape.rank() - 2)
        node.op_type = "Conv"
        node.resize_inputs(3)
        node.replace_input_with(1, _initializer(graph, f"{node.name}.weight", factor.reshape(-1, 1, *pixel)))
        node.replace_input_with(2, _initializer(graph, f"{node.name}.bias", bias - mean * factor))
        node.attributes.clear()
        node.attributes.add(ir.AttrInt64("group", len(factor)))
        node.attributes.add(ir.AttrInt64s("kernel_shape", pixel))


def _name_products(graph: ir.Graph) -> None:
    """Turn a square, and a division by powers of 2, into a product, which is the same number in float32.

    Every runtime has an integer kernel for that.
    """
    for node in graph:
        base, other = node.inputs if node.op_type in ("Pow", "Div") else (None, None)
        if base is None or base.shape is None or other is None or other.const_value is None:
            continue
        numbers = other.const_value.numpy()
        if node.op_type == "Pow" and numbers.size == 1 and numbers.ndim <= len(base.shape) and numbers.item() == 2:
            node.op_type = "Mul"
            node.replace_input_with(1, base)
        elif node.op_type == "Div" and base.dtype == ir.DataType.FLOAT and _have_exact_reciprocals(numbers):
            node.op_type = "Mul"
            node.replace_input_with(1, _initializer(graph, f"{node.name}.reciprocal", 1 / numbers.astype(np.float64)))


def _have_exact_reciprocals(numbers: NDArray[np.generic]) -> bool:
    mantissas, exponents = np.frexp(numbers.astype(np.float64))
    return bool((np.abs(mantissas) == 0.5).all() and (np.abs(exponents) < 100).all())


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array.astype(np.float32), name=name))
    graph.register_initializer(value)
    return value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's prints and third-party deprecations off the terminal; errors still come through."""
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # "torchvision is not installed": it is not needed
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(level)
