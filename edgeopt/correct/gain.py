"""What a correction brings: how near the quantized network comes to the float one on calibration samples, with and
without.

Held-out samples take no part. One half of the samples teaches the correction, the other half judges it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.artifacts import FloatModel
from edgeopt.calibrate.ranges import choose_ranges
from edgeopt.calibrate.statistics import calibrate
from edgeopt.correct.observe import Feeds
from edgeopt.errors import DataError
from edgeopt.parity import MAX_SQNR_DB, sqnr_db
from edgeopt.quantize.placement import quantized_nodes, quantized_tensors
from edgeopt.quantize.qdq import quantize
from edgeopt.quantize.scheme import ASYMMETRIC, Family
from edgeopt.quantize.unsigned import with_unsigned_activations
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import CalibrationSettings, QuantizeSettings, Switch

Answers = Mapping[str, NDArray[np.generic]]

_LEAST_DB = 0.5  # a correction that brings less is left out where it is "auto"


@dataclass(frozen=True)
class Gain:
    """One correction: the network's SQNR without it and with it, how many places it changed, and if it was kept."""

    correction: str
    without_db: float
    with_db: float
    places: int
    kept: bool

    @property
    def summary(self) -> str:
        """One line for people: ``equalize +1.9 dB``."""
        return f"{self.correction} {self.with_db - self.without_db:+.1f} dB" + ("" if self.kept else ", left out")


@dataclass(frozen=True)
class Halves:
    """The samples that teach and those that judge; a single sample does both."""

    teaching: Sequence[Feeds]
    judging: Sequence[Feeds]

    @classmethod
    def of(cls, samples: Sequence[Feeds]) -> Halves:
        """Split samples in two."""
        middle = (len(samples) + 1) // 2
        return cls(samples[:middle], samples[middle:] or samples)


def judge(correction: str, without_db: float, with_db: float, places: int, switch: Switch) -> Gain:
    """Decide whether a correction stays: always if it is ``"on"``, if it brings something where it is ``"auto"``."""
    return Gain(correction, without_db, with_db, places, switch == "on" or with_db - without_db >= _LEAST_DB)


def summary(gains: Sequence[Gain]) -> str:
    """Return one line for people."""
    return "; ".join(item.summary for item in gains) or "nothing to correct"


def report(gains: Sequence[Gain]) -> dict[str, object]:
    """Return the gains as JSON types."""
    return {"gains": [asdict(item) for item in gains]}


def float_answers(path: Path, samples: Sequence[Feeds]) -> Answers:
    """Return what the float network answers, each output of all samples together."""
    return _answers(OnnxSession(path), samples)


def quantized_db(model: ir.Model, samples: Sequence[Feeds], expected: Answers) -> float:
    """Return the SQNR of a QDQ graph's worst output in ONNX Runtime's integer kernels, in dB."""
    session = OnnxSession(ir.to_proto(with_unsigned_activations(model)).SerializeToString())
    actual = _answers(session, samples)
    return min(sqnr_db(expected[name], actual[name]) for name in expected)


@dataclass(frozen=True)
class Trials:
    """Quantizes float graphs as a recipe would, with ranges that its method chooses from the teaching samples."""

    calibration: CalibrationSettings
    plan: QuantizeSettings
    halves: Halves
    expected: Answers

    def sqnr_db(self, source: FloatModel) -> float:
        """Return the SQNR of what a float graph becomes; -200 where it has tensors that no range can hold."""
        histograms = self.calibration.method != "minmax"
        graph = ir.load(source.path).graph
        tensors = quantized_tensors(graph, ASYMMETRIC, self.plan)
        samples = [Sample(str(index), feeds) for index, feeds in enumerate(self.halves.teaching)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                found = calibrate(source, tensors, samples, len(samples), folder, histograms=histograms)
            except DataError:  # a mask of -inf
                return -MAX_SQNR_DB
            ranges = choose_ranges(source, found, ASYMMETRIC.activation_params, self.calibration, folder)
            made = quantize(source, ranges, ASYMMETRIC, self.plan, folder)
            return quantized_db(ir.load(made.path), self.halves.judging, self.expected)


def has_weights(graph: ir.Graph, plan: QuantizeSettings) -> bool:
    """Whether a plan quantizes the weights of a convolution or product."""
    if plan.precision == "float16":
        return False
    return any(item.family is Family.WEIGHTED for item in quantized_nodes(graph, ASYMMETRIC, plan))


def _answers(session: OnnxSession, samples: Sequence[Feeds]) -> Answers:
    found = [session.run(feeds) for feeds in samples]
    return {name: np.concatenate([np.atleast_1d(answers[name]) for answers in found]) for name in found[0]}
