"""Which steps of a recipe undid what compression had made of the weights, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeopt.compress.structure import LOW_BIT_KINDS
from edgeopt.settings import CorrectSettings, QuantizeSettings


def lost_weights(
    gains: Sequence[Mapping[str, Any]], quantize: QuantizeSettings, correct: CorrectSettings
) -> Iterator[str]:
    """Yield a warning for each kind of weights that the file does not have any more.

    Args:
        gains: :class:`edgeopt.bundle.weight_gains.WeightGain` as JSON.
        quantize: how the file was quantized.
        correct: what was done against the cost of int8.
    """
    for gain in gains:
        if not gain["is_kept"]:
            remedies = list(_remedies(gain["kind"], quantize, correct))
            yield f"{gain['remark']}; " + (", or ".join(remedies) or "a batch norm behind them scales each channel")


def _remedies(kind: str, quantize: QuantizeSettings, correct: CorrectSettings) -> Iterator[str]:
    """Yield what a recipe can write."""
    if kind == "shared" and quantize.weights == "per_channel":
        yield "scales by channel spread them: write weights = 'per_tensor' under [quantize]"
    if kind in LOW_BIT_KINDS and quantize.weights == "per_tensor":
        yield "each channel has a scale of its own: write weights = 'per_channel' under [quantize]"
    if correct.rounding != "nearest":
        yield "learned rounding moves every weight: write rounding = 'nearest' under [correct]"
    if kind not in ("sparse", "2:4"):
        for name in ("equalize", "smooth"):
            if getattr(correct, name) != "off":
                yield f"{name} gives channels factors of their own: write {name} = 'off' under [correct]"
