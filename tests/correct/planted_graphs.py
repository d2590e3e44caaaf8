"""Small networks with one fault planted in each, samples for them, and what their int8 answers are worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from float_graphs import node, write_graph

from edgeopt.artifacts import FloatModel
from edgeopt.correct.float_graph import correct
from edgeopt.correct.gain import Gain, Halves, Trials, float_answers
from edgeopt.session import OnnxSession
from edgeopt.settings import CalibrationSettings, CorrectSettings, QuantizeSettings

MINMAX = CalibrationSettings("samples", method="minmax")
INT8 = QuantizeSettings()
ALL_OFF = dict.fromkeys(("fold_batch_norm", "clamp_masks", "smooth", "equalize", "correct_bias"), "off")

NOTHING = CorrectSettings(**ALL_OFF)  # type: ignore[arg-type]


def only(name: str, switch: str = "auto") -> CorrectSettings:
    """Return settings with one correction."""
    return CorrectSettings(**{**ALL_OFF, name: switch})  # type: ignore[arg-type]


def noise(shape: tuple[int, ...], count: int = 8, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return samples of the input ``x``."""
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def weights(*shape: int, seed: int = 1) -> np.ndarray:
    """Return weights that keep the size of what they multiply."""
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def uneven_channels(folder: Path, activation: str = "Relu", extra: tuple = (), **more: object) -> FloatModel:
    """Two convolutions; the channels between them are of magnitudes from 1 to 2^-10, which the second one undoes."""
    sizes = np.exp2(-np.linspace(0, 10, 16)).astype(np.float32)
    constants = {
        "w": weights(16, 4, 1, 1) * sizes[:, None, None, None],
        "b": (0.1 * sizes).astype(np.float32),
        "v": weights(4, 16, 1, 1, seed=2) / sizes[None, :, None, None],
        "low": np.float32(0),
        "high": np.float32(6),
    }
    inputs = "c low high" if activation == "Clip" else "c"
    nodes = [node("Conv", "x w b", "c"), node(activation, inputs, "a"), node("Conv", "a v", "y"), *extra]
    return write_graph(folder, nodes, constants, (1, 4, 6, 6), **more)  # type: ignore[arg-type]


def corrected(
    source: FloatModel,
    settings: CorrectSettings,
    samples: list[dict[str, np.ndarray]],
    folder: Path,
    plan: QuantizeSettings = INT8,
) -> tuple[FloatModel, list[Gain]]:
    """Correct a float graph into a new folder."""
    folder.mkdir()
    return correct(source, settings, MINMAX, plan, samples, folder)


def int8_db(source: FloatModel, samples: list[dict[str, np.ndarray]]) -> float:
    """Return the SQNR of a float graph's int8 answers."""
    halves = Halves.of(samples)
    return Trials(MINMAX, INT8, halves, float_answers(source.path, halves.judging)).sqnr_db(source)


def float_error(before: FloatModel, after: FloatModel, samples: list[dict[str, np.ndarray]]) -> float:
    """Return the largest difference of two float graphs' answers, relative to the largest answer."""
    first, second = OnnxSession(before.path), OnnxSession(after.path)
    pairs = [(first.run(feeds), second.run(feeds)) for feeds in samples]
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(a[name]).max()) for a, b in pairs for name in a)


def constants_of(source: FloatModel) -> Mapping[str, np.ndarray]:
    """Return the constants of a float graph by name."""
    return {str(name): value.const_value.numpy() for name, value in ir.load(source.path).graph.initializers.items()}


def op_types(source: FloatModel) -> list[str]:
    """Return the operators of a graph in order."""
    return [item.op_type for item in ir.load(source.path).graph]
