"""Rules 6 to 8, 11 and 12 and the two recommendations: where Q/DQ nodes may stand.

Every check takes a graph and yields what breaks it as ``(where, fact)``.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto

from .graph import DEQUANTIZE, QUANTIZE, GraphView, input_at, label
from .number_rules import WEIGHTED, Findings

_ACTIVATIONS = (
    "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Sigmoid",
    "Softplus", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_ELEMENTWISE = ("Add", "Div", "Max", "Min", "Mul", "Sub", "Sum")
_POOLING = ("AveragePool", "GlobalAveragePool", "ReduceMean")

# Q(f(x)) == f(Q(x)): TensorRT moves Q and DQ past these, so they run on either type.
_COMMUTING = (
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "Pad", "Relu",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
_QUANTIZABLE = frozenset((*WEIGHTED, *_ELEMENTWISE, *_POOLING, *_COMMUTING, *_ACTIVATIONS, "Resize", QUANTIZE))


def outputs_are_float(view: GraphView) -> Findings:
    """Rule 6: no Q/DQ at the outputs of the graph.

    The last layer then writes float results from its int32 accumulator, without rounding them to int8 first.

    Source: "Q/DQ Layer-Placement Recommendations" (outputs of weighted operations stay as they are by default);
    TensorRT#1864, #2383.
    """
    for output in view.model.graph.output:
        producer = view.producer(output.name)
        if producer is not None and producer.op_type in (QUANTIZE, DEQUANTIZE):
            yield label(producer), f"makes the graph output {output.name!r}"
        elif output.type.tensor_type.elem_type in (TensorProto.INT8, TensorProto.UINT8):
            yield f"graph output {output.name!r}", "is an 8-bit integer, expected float"


def residual_inputs_are_quantized(view: GraphView) -> Findings:
    """Rule 7: both inputs of a residual Add are quantized, but for one that a weighted operation computes for it alone.

    TensorRT runs that operation and the Add as one kernel, whose output type follows the *other* input: if that is
    float, the kernel writes float and the Q behind it stands alone.

    Source: "Q/DQ Layer-Placement Recommendations" (quantize the residual input in skip connections); TensorRT#1992.
    """
    for node in view.of_type("Add"):
        names = list(node.input)
        if any(view.constant(name) is not None or _is_constant_dequantizer(view, name) for name in names):
            continue
        float_names = [name for name in names if not view.is_from(name, DEQUANTIZE)]
        fusable = [name for name in float_names if _is_fusable_branch(view, name, node)]
        if len(float_names) == len(names) and not any(_is_int8_region(view, name) for name in names):
            continue  # no part of the network around it is quantized
        for name in float_names:
            if name not in fusable[:1]:
                yield label(node), f"input {name!r} is not quantized"


def nothing_splits_a_fused_pair(view: GraphView) -> Findings:
    """Rule 8: no Q/DQ between a weighted operation and its batch normalization or activation.

    Source: "Q/DQ Layer-Placement Recommendations" (do not simulate batch-norm and ReLU fusions).
    """
    for node in view.of_type(DEQUANTIZE):
        maker = _float_maker(view, node)
        if maker is None or maker.op_type not in (*WEIGHTED, "BatchNormalization"):
            continue
        for use in view.uses(node.output[0]):
            if use.node.op_type in (*_ACTIVATIONS, "BatchNormalization"):
                yield label(node), f"stands between {label(maker)} and {label(use.node)}"


def pairs_are_whole(view: GraphView) -> Findings:
    """Rule 11: a Q feeds only DQs, a DQ reads a Q or a constant, and what it gives feeds what can run on int8.

    Source: "Explicit Quantization" (DQ and Q are fused into the quantizable layer between them; be conservative when
    adding Q/DQ); TensorRT#1532, #4554 (Q/DQ that no layer takes up cost time).
    """
    for node in view.of_type(QUANTIZE):
        uses = view.uses(node.output[0])
        others = [use.node for use in uses if use.node.op_type != DEQUANTIZE]
        if not uses:
            yield label(node), "nothing reads it"
        for other in others:
            yield label(node), f"is read by {label(other)}, expected a DequantizeLinear"
    for node in view.of_type(DEQUANTIZE):
        yield from _loose_dequantizer(view, node)


def weighted_inputs_go_together(view: GraphView) -> Findings:
    """Rule 12: a weighted operation has both its input and its weight quantized, or neither.

    Source: "Q/DQ Layer-Placement Recommendations" (quantize all inputs of weighted operations); TensorRT#1864.
    """
    for node in view.of_type(*WEIGHTED):
        quantized = [view.is_from(name, DEQUANTIZE) for name in node.input[:2]]
        if quantized == [True, False]:
            yield label(node), f"input is quantized, weight {node.input[1]!r} is float"
        if quantized == [False, True]:
            yield label(node), f"weight is quantized, input {node.input[0]!r} is float"


def residual_branch_stays_float(view: GraphView) -> Findings:
    """Recommendation 13: no Q/DQ between a weighted operation and the residual Add that alone reads it.

    The pair is exact but forces the operation and the Add into two kernels.

    Source: "Q/DQ Layer-Placement Recommendations" (figure on suboptimal fusion); TensorFlow Quantization Toolkit, "Add
    Custom QDQ Insertion Case"; TensorRT#3270.
    """
    for node in view.of_type("Add"):
        branches = [name for name in node.input if _is_split_branch(view, name, node)]
        if len(branches) == 2:
            branches = branches[1:]  # the other one is the residual input, which rule 7 wants quantized
        for name in branches:
            yield label(node), f"input {name!r} is quantized between a weighted operation and this Add"


def unweighted_outputs_are_quantized(view: GraphView) -> Findings:
    """Recommendation 14: an averaging or element-wise operation that reads int8 also writes int8.

    TensorRT has no kernels for these that read int8 and write float, so the operation runs on float.

    Source: "Q/DQ Layer-Placement Recommendations" (layers that do not commute with Q/DQ: quantize inputs and outputs).
    """
    for node in view.of_type(*_ELEMENTWISE, *_POOLING):
        if any(view.is_from(name, DEQUANTIZE) for name in node.input) and not _ends_in_quantize(view, node.output[0]):
            yield label(node), f"output {node.output[0]!r} is not quantized"


def _float_maker(view: GraphView, dequantize: NodeProto) -> NodeProto | None:
    """Return what makes the float tensor that a Q/DQ pair ending in ``dequantize`` passes on."""
    quantize = view.producer(dequantize.input[0])
    if quantize is None or quantize.op_type != QUANTIZE:
        return None
    return view.producer(quantize.input[0])


def _is_constant_dequantizer(view: GraphView, name: str) -> bool:
    producer = view.producer(name)
    return producer is not None and producer.op_type == DEQUANTIZE and view.constant(producer.input[0]) is not None


def _is_fusable_branch(view: GraphView, name: str, add: NodeProto) -> bool:
    maker = view.producer(name)
    if maker is not None and maker.op_type == "BatchNormalization" and view.is_only_read_by(name, add):
        return _is_fusable_branch(view, maker.input[0], maker)
    return maker is not None and maker.op_type in WEIGHTED and view.is_only_read_by(name, add)


def _is_int8_region(view: GraphView, name: str) -> bool:
    """Say whether a tensor comes from a weighted operation on int8, past its normalization and activation."""
    maker = view.producer(name)
    while maker is not None and maker.op_type in (*_ACTIVATIONS, "BatchNormalization"):
        maker = view.producer(maker.input[0])
    return maker is not None and maker.op_type in WEIGHTED and view.is_from(maker.input[0], DEQUANTIZE)


def _is_split_branch(view: GraphView, name: str, add: NodeProto) -> bool:
    dequantize = view.producer(name)
    if dequantize is None or dequantize.op_type != DEQUANTIZE or not view.is_only_read_by(name, add):
        return False
    quantize = view.producer(dequantize.input[0])
    if quantize is None or not view.is_only_read_by(dequantize.input[0], dequantize):
        return False
    return _is_fusable_branch(view, input_at(quantize, 0), quantize)


def _loose_dequantizer(view: GraphView, node: NodeProto) -> Findings:
    if view.constant(node.input[0]) is None and not view.is_from(node.input[0], QUANTIZE):
        yield label(node), f"reads {node.input[0]!r}, expected a QuantizeLinear or a constant"
    uses = view.uses(node.output[0])
    if not uses and node.output[0] not in view.output_names:
        yield label(node), "nothing reads it"
    for use in uses:
        if use.node.op_type not in _QUANTIZABLE:
            yield label(node), f"feeds {label(use.node)}, which does not run on int8"


def _ends_in_quantize(view: GraphView, name: str) -> bool:
    """Say whether every reader of a tensor is a Q, past activations and layers that commute with Q."""
    uses = view.uses(name)
    if name in view.output_names or not uses:
        return False
    return all(
        use.node.op_type == QUANTIZE
        or (use.node.op_type in (*_COMMUTING, *_ACTIVATIONS) and _ends_in_quantize(view, use.node.output[0]))
        for use in uses
    )
