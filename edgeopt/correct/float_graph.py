"""The corrections of the float graph, one after the other, each kept if it brings something.

    FloatModel -fold_batch_norm-> -clamp_masks-> -smooth-> -equalize-> FloatModel that quantizes better

Each leaves the answers of the float network to the teaching samples what they were, which is checked, and the names of
nodes and tensors too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt.artifacts import FloatModel
from edgeopt.correct.channels import channel_groups
from edgeopt.correct.equalize import equalize
from edgeopt.correct.folding import fold
from edgeopt.correct.gain import Answers, Gain, Halves, Trials, float_answers, has_weights, judge
from edgeopt.correct.masks import clamp_masks
from edgeopt.correct.observe import Feeds, channel_statistics, inside
from edgeopt.correct.smooth import smooth
from edgeopt.errors import QuantizationError
from edgeopt.export import save_float
from edgeopt.settings import CalibrationSettings, CorrectSettings, QuantizeSettings, Switch
from edgeopt.stage import logger

_SAME = 1e-4  # of the largest magnitude: as near as the export is held to its network

Correction = Callable[[ir.Graph, Path, Sequence[Feeds]], int]


def correct(
    source: FloatModel,
    settings: CorrectSettings,
    calibration: CalibrationSettings,
    plan: QuantizeSettings,
    samples: Sequence[Feeds],
    out_dir: Path,
) -> tuple[FloatModel, list[Gain]]:
    """Correct a float graph for quantization and say what each correction brought.

    Args:
        source: the float graph.
        settings: which corrections are on.
        calibration: how ranges are chosen.
        plan: what operators compute in.
        samples: calibration samples; one half teaches, the other judges.
        out_dir: where ``model.onnx`` is written.

    Raises:
        QuantizationError: if there are no samples, or a correction that is ``"on"`` changed the network's answers.
    """
    if not samples:
        raise QuantizationError("corrections need at least one calibration sample, got none")
    current, halves, gains = source, Halves.of(samples), list[Gain]()
    taught, expected = (float_answers(source.path, half) for half in (halves.teaching, halves.judging))
    trials, before = Trials(calibration, plan, halves, expected), None
    wanted = _CORRECTIONS if has_weights(ir.load(source.path).graph, plan) else {}
    for name, correction in wanted.items():
        switch: Switch = getattr(settings, name)
        if switch == "off":
            continue
        model = ir.load(current.path)
        places = correction(model.graph, current.path, halves.teaching)
        if not places:
            continue
        candidate = save_float(model, out_dir / f"{name}.onnx")
        if not _answers_alike(candidate, halves.teaching, taught, name, switch):
            continue
        before = trials.sqnr_db(current) if before is None else before
        gains.append(judge(name, before, trials.sqnr_db(candidate), places, switch))
        if gains[-1].kept:
            current, before = candidate, gains[-1].with_db
    corrected = save_float(ir.load(current.path), out_dir / "model.onnx")
    for name in wanted:
        for path in out_dir.glob(f"{name}.onnx*"):
            path.unlink()
    return corrected, gains


def _equalized(graph: ir.Graph, path: Path, samples: Sequence[Feeds]) -> int:
    return equalize(graph, channel_statistics(path, channel_groups(graph), samples))


def _smoothed(graph: ir.Graph, path: Path, samples: Sequence[Feeds]) -> int:
    return smooth(graph, channel_statistics(path, channel_groups(graph), samples))


_CORRECTIONS: Mapping[str, Correction] = {
    "fold_batch_norm": lambda graph, path, samples: fold(graph),
    "clamp_masks": lambda graph, path, samples: clamp_masks(graph, lambda names: inside(path, names, samples)),
    "smooth": _smoothed,
    "equalize": _equalized,
}


def _answers_alike(
    candidate: FloatModel, samples: Sequence[Feeds], expected: Answers, name: str, switch: Switch
) -> bool:
    """Whether a corrected float network still answers what it did; said aloud if not."""
    actual = float_answers(candidate.path, samples)
    errors = {
        output: float(np.abs(np.subtract(actual[output], reference)).max() / (np.abs(reference).max() or 1.0))
        for output, reference in expected.items()
    }
    worst = max(errors, key=lambda output: errors[output])
    if errors[worst] <= _SAME:
        return True
    text = f"correct.{name} changes output {worst!r} of the float network by {errors[worst]:.2g} of its range"
    if switch == "on":
        raise QuantizationError(f"{text}, expected at most {_SAME:g}", hint=f"write {name} = 'off' under [correct]")
    logger.warning("%s: left out", text)
    return False
