"""Graphs for TensorRT's rules: one that keeps them all, and changes to it that keep or break them."""

import onnx
from onnx import parser

# Two convolutions, a residual Add, a global average and a classifier, in the form that TensorRT's documents ask for.
CONFORMING = """
<ir_version: 9, opset_import: ["": 18]>
network (float[1,2,4,4] image) => (float[1,3] logits)
<
  float s = {0.1}, int8 z = {0},
  float[2] w_scale = {0.01, 0.02}, int8[2] w_zero = {0, 0}, int8[2,2,1,1] w = {1, -127, 3, 127},
  float[2] v_scale = {0.03, 0.01}, int8[2] v_zero = {0, 0}, int8[2,2,1,1] v = {5, 6, -7, 8},
  float[3] g_scale = {0.1, 0.2, 0.3}, int8[3] g_zero = {0, 0, 0}, int8[3,2] g = {1, 2, 3, 4, 5, 6},
  float[2] bias = {0.5, -0.5}
>
{
  image_q = QuantizeLinear (image, s, z)
  image_d = DequantizeLinear (image_q, s, z)
  w_d = DequantizeLinear <axis: int = 0> (w, w_scale, w_zero)
  wide = Conv (image_d, w_d, bias)
  act = Relu (wide)
  act_q = QuantizeLinear (act, s, z)
  act_d = DequantizeLinear (act_q, s, z)
  v_d = DequantizeLinear <axis: int = 0> (v, v_scale, v_zero)
  narrow = Conv (act_d, v_d, bias)
  sum = Add (act_d, narrow)
  sum_q = QuantizeLinear (sum, s, z)
  sum_d = DequantizeLinear (sum_q, s, z)
  mean = GlobalAveragePool (sum_d)
  flat = Flatten (mean)
  flat_q = QuantizeLinear (flat, s, z)
  flat_d = DequantizeLinear (flat_q, s, z)
  g_d = DequantizeLinear <axis: int = 0> (g, g_scale, g_zero)
  logits = Gemm <transB: int = 1> (flat_d, g_d)
}
"""

PAIR = "{0}_q = QuantizeLinear ({0}, s, z)\n  {0}_d = DequantizeLinear ({0}_q, s, z)\n  "
BRANCH_PAIR = [
    ("sum = Add (act_d, narrow)", PAIR.format("narrow") + "sum = Add (act_d, narrow_d)"),
]


def changed(*changes: tuple[str, str]) -> onnx.ModelProto:
    text = CONFORMING
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new)
    return parser.parse_model(text)


BREAKING = {
    # Rule 1: int8 only.
    "uint8": (1, [("int8 z = {0}", "uint8 z = {0}")]),
    "int16": (1, [("int8 z = {0}", "int16 z = {0}")]),
    "int4-weight": (
        1,
        [
            ("int8[2] w_zero", "int4[2] w_zero"),
            ("int8[2,2,1,1] w = {1, -127, 3, 127}", "int4[2,2,1,1] w = {1, -7, 3, 7}"),
        ],
    ),
    "no-zero-point-means-uint8": (
        1,
        [
            ("image_q = QuantizeLinear (image, s, z)", "image_q = QuantizeLinear (image, s)"),
            ("(image_q, s, z)", "(image_q, s)"),
        ],
    ),
    # Rule 2: zero-points are 0.
    "zero-point": (2, [("int8 z = {0}", "int8 z = {3}")]),
    "weight-zero-point": (2, [("w_zero = {0, 0}", "w_zero = {0, -1}")]),
    "computed-zero-point": (
        2,
        [
            ("int8 z = {0},", "int8 z = {0}, float f = {0},"),
            (
                "  image_q = QuantizeLinear (image, s, z)",
                "  zc = Cast <to: int = 3> (f)\n  image_q = QuantizeLinear (image, s, zc)",
            ),
        ],
    ),
    # Rule 3: scales are constant, finite and above 0.
    "zero-scale": (3, [("float s = {0.1}", "float s = {0}")]),
    "negative-weight-scale": (3, [("w_scale = {0.01, 0.02}", "w_scale = {0.01, -0.02}")]),
    "computed-scale": (
        3,
        [("  image_q = QuantizeLinear (image, s, z)", "  t = Abs (s)\n  image_q = QuantizeLinear (image, t, z)")],
    ),
    # Rule 4: activations per tensor, weights along the kernels' axis.
    "per-channel-activation": (
        4,
        [
            (
                "image_q = QuantizeLinear (image, s, z)",
                "image_q = QuantizeLinear <axis: int = 1> (image, w_scale, w_zero)",
            )
        ],
    ),
    "conv-axis-1": (4, [("w_d = DequantizeLinear <axis: int = 0>", "w_d = DequantizeLinear <axis: int = 1>")]),
    "gemm-axis-1": (4, [("g_d = DequantizeLinear <axis: int = 0>", "g_d = DequantizeLinear <axis: int = 1>")]),
    "default-axis-is-1": (4, [("w_d = DequantizeLinear <axis: int = 0>", "w_d = DequantizeLinear")]),
    "too-few-scales": (
        4,
        [
            (
                "float[3] g_scale = {0.1, 0.2, 0.3}, int8[3] g_zero = {0, 0, 0}",
                "float[2] g_scale = {0.1, 0.2}, int8[2] g_zero = {0, 0}",
            )
        ],
    ),
    "convtranspose-axis-1": (
        4,
        [
            ("w_d = DequantizeLinear <axis: int = 0>", "w_d = DequantizeLinear <axis: int = 1>"),
            ("wide = Conv (", "wide = ConvTranspose ("),
        ],
    ),
    "blocks": (
        4,
        [
            (
                "float[3] g_scale = {0.1, 0.2, 0.3}, int8[3] g_zero = {0, 0, 0}",
                "float[3,2] g_scale = {1, 1, 1, 1, 1, 1}, int8[3,2] g_zero = {0, 0, 0, 0, 0, 0}",
            )
        ],
    ),
    "per-channel-constant-operand": (
        4,
        [
            (
                "sum = Add (act_d, narrow)",
                "k_d = DequantizeLinear <axis: int = 0> (w, w_scale, w_zero)\n  sum = Add (act_d, k_d)",
            )
        ],
    ),
    # Rule 5: a bias is float.
    "quantized-bias": (
        5,
        [
            ("float[2] bias = {0.5, -0.5}", "int32[2] b = {5, -5}"),
            ("w_d = Deq", "bias = DequantizeLinear <axis: int = 0> (b, w_scale)\n  w_d = Deq"),
        ],
    ),
    "int8-bias": (5, [("float[2] bias = {0.5, -0.5}", "int8[2] bias = {5, -5}")]),
    # Rule 6: graph outputs are float.
    "pair-at-the-output": (
        6,
        [
            ("logits = Gemm", "last = Gemm"),
            (
                "(flat_d, g_d)\n",
                "(flat_d, g_d)\n  last_q = QuantizeLinear (last, s, z)\n  logits = DequantizeLinear (last_q, s, z)\n",
            ),
        ],
    ),
    "int8-output": (6, [("(float[1,3] logits)", "(int8[1,3] logits)")]),
    # Rule 7: a residual input is quantized.
    "float-residual": (7, [("sum = Add (act_d, narrow)", "sum = Add (act, narrow)")]),
    "branch-that-another-node-reads": (
        7,
        [("sum = Add (act_d, narrow)", "sum = Add (act_d, narrow)\n  other = Relu (narrow)")],
    ),
    "two-float-branches": (
        7,
        [("act = Relu (wide)", "act = Relu (image_d)"), ("sum = Add (act_d, narrow)", "sum = Add (wide, narrow)")],
    ),
    # Rule 8: nothing stands between a weighted operation and its activation.
    "pair-before-relu": (8, [("act = Relu (wide)", PAIR.format("wide") + "act = Relu (wide_d)")]),
    "pair-before-clip": (8, [("act = Relu (wide)", PAIR.format("wide") + "act = Clip (wide_d)")]),
    # Rule 9: the parser reads opset and operators.
    "old-opset": (9, [('"": 18', '"": 12')]),
    "new-opset": (9, [('"": 18', '"": 25')]),
    "unknown-operator": (9, [("flat = Flatten (mean)", "flat0 = Flatten (mean)\n  flat = Det (flat0)")]),
    "foreign-domain": (
        9,
        [('"": 18', '"": 18, "com.microsoft": 1'), ("flat = Flatten (mean)", "flat = com.microsoft.Flatten (mean)")],
    ),
    "computed-axes": (
        9,
        [
            ("float s = {0.1}", "int64[2] a = {2, 3}, float s = {0.1}"),
            ("mean = GlobalAveragePool (sum_d)", "b = Abs (a)\n  mean = ReduceMean (sum_d, b)"),
        ],
    ),
    "pooling-indices": (
        9,
        [("mean = GlobalAveragePool (sum_d)", "mean, where = MaxPool <kernel_shape: ints = [4, 4]> (sum_d)")],
    ),
    # Rule 10: a dynamic batch has a profile.
    "no-profile": (10, [("float[1,2,4,4] image", "float[N,2,4,4] image")]),
    # Rule 11: pairs are whole and in use.
    "quantize-without-dequantize": (
        11,
        [("act = Relu (wide)", "act = Relu (wide)\n  lost = QuantizeLinear (act, s, z)")],
    ),
    "quantize-read-by-another": (11, [("act_d = Deq", "cast = Cast <to: int = 1> (act_q)\n  act_d = Deq")]),
    "dequantize-without-reader": (11, [("act_d = Deq", "lost = DequantizeLinear (act_q, s, z)\n  act_d = Deq")]),
    "dequantize-of-computed": (
        11,
        [
            (
                "act_d = DequantizeLinear (act_q, s, z)",
                "moved = Identity (act_q)\n  act_d = DequantizeLinear (moved, s, z)",
            )
        ],
    ),
    "pair-before-softmax": (
        11,
        [("flat = Flatten (mean)", "flat0 = Flatten (mean)\n  " + PAIR.format("flat0") + "flat = Softmax (flat0_d)")],
    ),
    # Rule 12: input and weight are quantized together.
    "float-weight": (
        12,
        [
            ("int8[2,2,1,1] v = {5, 6, -7, 8}", "float[2,2,1,1] v = {5, 6, -7, 8}, int8[2] u = {0, 0}"),
            ("  v_d = DequantizeLinear <axis: int = 0> (v, v_scale, v_zero)\n", ""),
            ("(act_d, v_d, bias)", "(act_d, v, bias)"),
        ],
    ),
    "float-input": (
        12,
        [
            ("logits = Gemm <transB: int = 1> (flat_d, g_d)", "logits = Gemm <transB: int = 1> (flat, g_d)"),
            ("  flat_q = QuantizeLinear (flat, s, z)\n  flat_d = DequantizeLinear (flat_q, s, z)\n", ""),
        ],
    ),
}


KEEPING = {
    "both-residual-inputs-quantized": BRANCH_PAIR,
    "weights-per-tensor": [
        ("w_d = DequantizeLinear <axis: int = 0> (w, w_scale, w_zero)", "w_d = DequantizeLinear (w, s, z)")
    ],
    "float-weights-behind-a-pair": [
        ("int8[2,2,1,1] w = {1, -127, 3, 127}", "float[2,2,1,1] wf = {0.1, -1.27, 0.03, 1.27}"),
        ("  w_d = Deq", "  w = QuantizeLinear <axis: int = 0> (wf, w_scale, w_zero)\n  w_d = Deq"),
    ],
    "convtranspose-per-input-channel": [("wide = Conv (", "wide = ConvTranspose (")],
    "matmul-last-axis": [
        ("int8[3,2] g = {1, 2, 3, 4, 5, 6}", "int8[2,3] g = {1, 2, 3, 4, 5, 6}"),
        ("g_d = DequantizeLinear <axis: int = 0>", "g_d = DequantizeLinear <axis: int = -1>"),
        ("logits = Gemm <transB: int = 1>", "logits = MatMul"),
    ],
    "gemm-not-transposed": [
        ("int8[3,2] g = {1, 2, 3, 4, 5, 6}", "int8[2,3] g = {1, 2, 3, 4, 5, 6}"),
        ("g_d = DequantizeLinear <axis: int = 0>", "g_d = DequantizeLinear <axis: int = 1>"),
        ("Gemm <transB: int = 1>", "Gemm <transB: int = 0>"),
    ],
    "no-zero-point-but-a-type": [
        ('"": 18', '"": 21'),
        ("image_q = QuantizeLinear (image, s, z)", "image_q = QuantizeLinear <output_dtype: int = 3> (image, s)"),
        ("(image_q, s, z)", "(image_q, s)"),
    ],
    "batch-norm-before-the-add": [
        (
            "narrow = Conv (act_d, v_d, bias)",
            "raw = Conv (act_d, v_d, bias)\n  narrow = BatchNormalization (raw, bias, bias, bias, w_scale)",
        ),
    ],
    "constant-operand": [
        ("int8[2,2,1,1] w =", "int8[1,2,1,1] k = {4, 5}, int8[2,2,1,1] w ="),
        ("sum = Add (act_d, narrow)", "k_d = DequantizeLinear (k, s, z)\n  sum = Add (act_d, k_d)"),
    ],
    "activation-shared-by-two-readers": [
        ("float[1,3] logits)", "float[1,3] logits, float[1,2,4,4] shared)"),
        ("sum_d = Deq", "shared = Relu (narrow)\n  sum_d = Deq"),
        ("sum = Add (act_d, narrow)", PAIR.format("narrow") + "sum = Add (act_d, narrow_d)"),
    ],
}


ADVISED = {
    "split-branch": (13, BRANCH_PAIR),
    "split-branch-past-batch-norm": (
        13,
        [
            (
                "sum = Add (act_d, narrow)",
                "norm = BatchNormalization (narrow, bias, bias, bias, w_scale)\n  "
                + PAIR.format("norm")
                + "sum = Add (act_d, norm_d)",
            )
        ],
    ),
    "float-average": (
        14,
        [("flat_q = QuantizeLinear (flat, s, z)", "soft = Softmax (flat)\n  flat_q = QuantizeLinear (soft, s, z)")],
    ),
}
