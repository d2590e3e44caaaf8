"""Bias correction: what rounding the weights adds to a channel on average is taken off its bias.

Rounded weights do not only make a layer's results noisy, they move them: each weight's error times the mean of what
it multiplies, summed, is the same in every place. A depthwise convolution has nine weights a channel, too few for
their errors to cancel. The mean is taken over samples and places, of what the layer really gets in the quantized
graph behind layers that are corrected already, and goes into the bias in its own steps. What clipped ranges move
is left alone: it comes from few large values, and few samples do not tell how many there are.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721,
section 4.2; Finkelstein et al., "Fighting Quantization Bias With Bias", arXiv 1906.03193.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeopt.correct.layerwise import Layer, dequantized, set_stored_constant, stored_constant
from edgeopt.correct.operands import constant, is_constant, replace_constant

_INT32_ROOM = 2**30  # as in the quantizer: the accumulator keeps the other half


def correct_bias(layer: Layer) -> bool:
    """Take the mean error of each channel off a layer's bias, in place; return whether it has a bias."""
    node = layer.node
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    error = dequantized(node, 1) - layer.weights
    shift = np.mean([_channel_mean(product, node.op_type) for product in layer.products(error)], axis=0)
    if is_constant(node, 2):
        replace_constant(node, 2, constant(node, 2) - shift)
        return True
    steps, bias_scale = stored_constant(node, 2)
    set_stored_constant(node, 2, np.clip(steps - np.rint(shift / bias_scale), -_INT32_ROOM, _INT32_ROOM))
    return True


def _channel_mean(product: NDArray[np.float32], op_type: str) -> NDArray[np.float64]:
    """Average all axes but that of the channels: the last of a product, the second of a convolution."""
    axis = 1 if op_type in ("Conv", "ConvTranspose") else product.ndim - 1
    others = tuple(other for other in range(product.ndim) if other != axis)
    return np.asarray(product.mean(axis=others, dtype=np.float64))
