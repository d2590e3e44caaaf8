"""The corrections of the QDQ graph, layer by layer on calibration samples: learned rounding, then bias correction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from edgeopt.artifacts import FloatModel, QdqModel
from edgeopt.correct.bias import correct_bias
from edgeopt.correct.gain import Gain, Halves, float_answers, judge, quantized_db
from edgeopt.correct.layerwise import Layer, float_weights, is_layer, layers
from edgeopt.correct.observe import Feeds
from edgeopt.correct.rounding import learn_rounding
from edgeopt.quantize.names import read_names, write_names
from edgeopt.settings import CorrectSettings, Switch


def refine(
    made: QdqModel, source: FloatModel, settings: CorrectSettings, samples: Sequence[Feeds], out_dir: Path
) -> tuple[QdqModel, list[Gain]]:
    """Correct a QDQ graph and say what each correction brought.

    Args:
        made: the QDQ graph.
        source: the float graph that it was made from.
        settings: which corrections are on.
        samples: calibration samples; one half teaches, the other judges.
        out_dir: where ``model.onnx`` is written.
    """
    model, halves, gains = ir.load(made.path), Halves.of(samples), list[Gain]()
    asked: list[tuple[str, Switch, Callable[[Layer], bool]]] = [
        ("rounding", settings.learns_rounding, learn_rounding),
        ("correct_bias", settings.correct_bias, correct_bias),
    ]
    wanted = [item for item in asked if item[1] != "off"] if any(map(is_layer, model.graph)) else []
    if wanted:
        expected = float_answers(source.path, halves.judging)
        before = quantized_db(model, halves.judging, expected)
        weights = float_weights(ir.load(source.path).graph)
    for name, switch, correction in wanted:
        candidate = model.clone()
        places = sum(map(correction, layers(candidate, weights, halves.teaching)))
        gains.append(judge(name, before, quantized_db(candidate, halves.judging, expected), places, switch))
        if gains[-1].kept:
            model, before = candidate, gains[-1].with_db
    path = out_dir / "model.onnx"
    ir.save(model, path)
    write_names(read_names(made), out_dir)
    return QdqModel(path, made.scheme), gains
