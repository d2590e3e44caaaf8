"""A recipe trained from several seeds: the float teacher and the bundle that its chain made, asked the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_figures import Figure
from bench_network import Network, NotMeasured, bundle_answers
from numpy.typing import NDArray

from edgeopt import parity
from edgeopt.accuracy.metrics import metric_named
from edgeopt.accuracy.paired import Interval, drop_interval
from edgeopt.cache import Cache
from edgeopt.conversion import convert
from edgeopt.errors import EdgeoptError
from edgeopt.pipeline import build
from edgeopt.recipe import LoadedRecipe
from edgeopt.runner import StageRunner
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.shared_stages import SharedStages

SEEDS = (0, 1, 2)
TARGET = "arm64"


@dataclass(frozen=True)
class Pair:
    """What one training gave: the teacher as a float ``.tflite`` file, the student as the bundle that ships.

    ``teacher_right`` and ``student_right``, ``(N,)``, tell which held-out samples each of them got right.
    """

    teacher: Path
    bundle: Path
    teacher_right: NDArray[np.float64]
    student_right: NDArray[np.float64]

    @property
    def student(self) -> Path:
        """The bundle's model file."""
        return self.bundle / str(parity.read_bundle(str(self.bundle))["model"]["file"])

    @property
    def drop(self) -> float:
        """What the student lost of the teacher's top-1, as a share; below 0 where it won."""
        return float((self.teacher_right - self.student_right).mean())


def trained_pairs(network: Network, seeds: Sequence[int] = SEEDS) -> list[Pair]:
    """Train teacher and student from each seed, with their stages cached in the network's folder.

    Raises:
        NotMeasured: a build stops.
    """
    samples = network.samples("held_out", network.loaded.recipe.calibration.num_held_out)
    folder = network.folder / "compression"
    return [trained_pair(network, _seeded(network.loaded, seed), folder / f"seed-{seed}", samples) for seed in seeds]


def trained_pair(network: Network, loaded: LoadedRecipe, folder: Path, samples: Sequence[Sample]) -> Pair:
    """Build a recipe and its teacher into ``folder`` and ask both the samples; stages are cached for the network.

    Raises:
        NotMeasured: a build stops.
    """
    graph = float_graph(network, replace(loaded, recipe=replace(loaded.recipe, compress={})))
    bundle = built_bundle(network, loaded, folder)
    layouts = {facts["name"]: facts["layout"] for facts in parity.read_bundle(str(bundle))["inputs"]}
    images = {name: layout for name, layout in layouts.items() if layout != "any"}
    teacher = folder / "teacher.tflite"
    convert(graph, teacher, input_layouts=images)
    integers = bundle_answers(bundle, network.inputs, samples)
    return Pair(teacher, bundle, _right(float_answers(graph, samples), samples), _right(integers, samples))


def built_bundle(network: Network, loaded: LoadedRecipe, folder: Path) -> Path:
    """Return the bundle that a recipe comes to, below ``folder``.

    Raises:
        NotMeasured: the build stops.
    """
    try:
        built = build(loaded, targets=(TARGET,), out=folder, cache=_cache(network), verify=False)
    except EdgeoptError as error:
        raise NotMeasured(f"{network.name}: {error.message}") from error
    return built.bundles[0].path


def float_graph(network: Network, loaded: LoadedRecipe) -> Path:
    """Return the float ONNX graph that a recipe comes to.

    Raises:
        NotMeasured: a stage before it stops.
    """
    try:
        return SharedStages(loaded, StageRunner(Cache(_cache(network)))).float_model[0].path
    except EdgeoptError as error:
        raise NotMeasured(f"{network.name}: {error.message}") from error


def float_answers(graph: Path, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return what a float graph answers in ONNX Runtime."""
    session = OnnxSession(graph)
    return [dict(session.run(sample.inputs)) for sample in samples]


def drop_figure(section: str, name: str, pairs: Sequence[Pair]) -> Figure:
    """Return the mean drop of top-1 over the seeds, its paired interval beside it."""
    answers = [(pair.teacher_right, pair.student_right) for pair in pairs]
    interval = paired_interval(*map(np.concatenate, zip(*answers, strict=True)))
    each = ", ".join(f"{100 * one.mean():.1f} -> {100 * other.mean():.1f}" for one, other in answers)
    remark = f"top-1 {each} %; within {100 * interval.low:.2f} and {100 * interval.high:.2f}"
    if interval.holds_zero:
        remark += ", not to be told from none"
    return Figure(
        section, name, f"drop, mean of {len(pairs)} seeds", 100 * np.mean([p.drop for p in pairs]), "%", remark
    )


def paired_interval(reference: NDArray[np.float64], actual: NDArray[np.float64]) -> Interval:
    """Return the interval of the drop between two networks' right answers, ``(N,)`` each, sample by sample."""
    interval = drop_interval(metric_named("top1", Path()), reference, actual)
    assert interval is not None
    return interval


def _cache(network: Network) -> Path:
    """Return where stages of a network's many trainings go, apart from those of the one build of other sections."""
    return (network.folder / "compression" / ".cache").absolute()


def _seeded(loaded: LoadedRecipe, seed: int) -> LoadedRecipe:
    """Return the recipe with one seed for all that it trains."""
    recipe = loaded.recipe
    assert recipe.train is not None
    steps = {name: _with_seed(step, seed) for name, step in recipe.compress.items()}
    return replace(loaded, recipe=replace(recipe, train=replace(recipe.train, seed=seed), compress=steps))


def _with_seed(settings: Any, seed: int) -> Any:
    """Return a step's settings with this seed, its own and that of a training inside it."""
    changed: dict[str, Any] = {"seed": seed} if hasattr(settings, "seed") else {}
    if getattr(settings, "finetune", None) is not None:
        changed["finetune"] = replace(settings.finetune, seed=seed)
    return replace(settings, **changed)


def _right(answers: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return 1 for each sample whose largest answer is its label, else 0; a network with one output."""
    found = [
        int(next(iter(answer.values())).argmax()) == sample.label
        for answer, sample in zip(answers, samples, strict=True)
    ]
    return np.array(found, np.float64)
