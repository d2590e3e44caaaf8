"""What the contract says of one target's model: what int8 costs, how sure that is, and what was moved to hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgeopt.accuracy.paired import Interval
from edgeopt.accuracy.search import Trial, frontier
from edgeopt.settings import Precision


@dataclass(frozen=True)
class Measured:
    """One model beside the float network on the held-out samples.

    Attributes:
        metric, output, unit: what was measured; a unit of ``%`` is a share from 0 to 1.
        is_proxy: there were no labels, and the float network's own answers stood in for them.
        float_figure, figure: the metric of the float network and of the model.
        drop: how much worse the model is.
        disagreement: the share of samples with another class than the float network's; ``None`` if there are none.
        mean_sqnr_db: signal to noise against the float network, the mean over samples.
        num_samples: that judged.
        interval: of the drop; ``None`` where the metric cannot be taken apart.
    """

    metric: str
    output: str
    unit: str
    is_proxy: bool
    float_figure: float
    figure: float
    drop: float
    disagreement: float | None
    mean_sqnr_db: float
    num_samples: int
    interval: Interval | None


@dataclass(frozen=True)
class AccuracyReport:
    """The contract's verdict: ``nodes`` are what the search moved, ``trials`` all plans that the samples judged."""

    measured: Measured
    max_drop: float
    passed: bool
    nodes: Mapping[str, Precision]
    trials: tuple[Trial, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Say why the verdict is no."""
        if self.passed:
            return ()
        found, measured = self.measured, self.measured.metric
        if found.drop <= self.max_drop:
            return (f"{measured} holds only with fewer multiplications on integers than min_integer_coverage asks",)
        text = f"{measured} drops by {shown(found.drop, found.unit)}, limit {shown(self.max_drop, found.unit)}"
        return (f"{text}, with the best of {max(len(self.trials), 1)} plans",)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types, with what each trial took."""
        content = asdict(self)
        points = [trial.num_moves for trial in frontier(self.trials)]
        return {**content, "trials": [asdict(trial) for trial in self.trials], "frontier": points}

    def lasting(self) -> dict[str, Any]:
        """Return what does not depend on the machine's speed, for a bundle that is the same byte for byte."""
        content = self.to_json()
        for trial in content["trials"]:
            del trial["median_ms"]
        return content


def report_of(content: Mapping[str, Any]) -> AccuracyReport:
    """Return the typed form of :meth:`AccuracyReport.to_json`."""
    return AccuracyReport(
        measured=measured_of(content["measured"]),
        max_drop=content["max_drop"],
        passed=content["passed"],
        nodes=content["nodes"],
        trials=tuple(Trial(**trial) for trial in content["trials"]),
    )


def measured_of(content: Mapping[str, Any]) -> Measured:
    """Return the typed form of a measurement's JSON."""
    interval = content["interval"]
    return Measured(**{**content, "interval": None if interval is None else Interval(**interval)})


def shown(figure: float, unit: str) -> str:
    """Return a figure of a metric for people: ``1.25 %``, ``0.31 dB``, ``0.00412``."""
    return f"{100 * figure:.2f} %" if unit == "%" else f"{figure:.4g} {unit}".rstrip()


def interval_text(measured: Measured) -> str:
    """Return the interval of the drop for people, and whether the drop can be told from none."""
    interval = measured.interval
    if interval is None:
        return "no interval: the metric gives one number for all samples"
    text = f"{100 * interval.confidence:g} % interval {shown(interval.low, measured.unit)} to "
    text += shown(interval.high, measured.unit)
    return text + (", not to be told from no drop" if interval.holds_zero else "")
