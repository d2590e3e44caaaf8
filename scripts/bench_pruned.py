"""What structured pruning reaches with distillation: multiplications, latency and accuracy beside the teacher.

All figures are of bundles as they ship. Agreement stands for accuracy where the samples have no labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from bench_figures import Figure
from bench_latency import litert_ratio
from bench_network import Network, NotMeasured, bundle_answers
from bench_seeds import Pair, built_bundle, float_answers, float_graph, paired_interval, trained_pair
from numpy.typing import NDArray

from edgeopt import parity
from edgeopt.dataset import checked_samples, find_dataset
from edgeopt.errors import EdgeoptError
from edgeopt.recipe import LoadedRecipe, load_recipe
from edgeopt.samples import Sample

_SECTION = "compression"
_PEOPLE = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10))
_RATIOS = (0.1, 0.2, 0.3)
_ROUNDS = 40  # of ten inferences each
PRUNED_WIDTHS = [8, 16, 40]  # of the groups of ResNet-20 when its recipe has pruned it


def latency_figures(network: Network) -> Iterator[Figure]:
    """Give multiplications, latency and accuracy of a network beside its teacher and beside itself from scratch."""
    samples = _held_out(network.loaded)
    pair = trained_pair(network, network.loaded, network.folder / "compression" / "pruned", samples)
    yield _macs(network.name, [pair])
    faster, remark = litert_ratio(network, pair.teacher, pair.student, samples[0], _ROUNDS)
    yield Figure(_SECTION, network.name, "float teacher / int8 student, latency", faster, "x", remark)
    yield _drop(network.name, "drop", [pair])
    yield _scratch(network, pair, samples)


def people_figures(network: Network) -> Iterator[Figure]:
    """Give multiplications and accuracy on people whom neither teacher nor student met, each of the ten once."""
    pairs = []
    for people in _PEOPLE:
        loaded = load_recipe(network.reference, {"calibration.options.unseen_people": list(people)})
        folder = network.folder / "compression" / "-".join(map(str, people))
        pairs.append(trained_pair(network, loaded, folder, _held_out(loaded)))
    yield _macs(network.name, pairs)
    yield _drop(network.name, "drop on unseen people", pairs)


def agreement_figures(network: Network) -> Iterator[Figure]:
    """Give the agreement with the original network at each pruning ratio: pruned, distilled, and as int8 bundle."""
    samples = network.samples("held_out", network.loaded.recipe.calibration.num_held_out)
    original = _float_logits(network, _first_steps(network.loaded, 0), samples)
    for ratio in _RATIOS:
        loaded = load_recipe(network.reference, {"compress.prune.pruning_ratio": ratio})
        bundle = built_bundle(network, loaded, network.folder / "compression" / f"{ratio}")
        answers = {
            "pruned": _float_logits(network, _first_steps(loaded, 1), samples),
            "pruned and distilled": _float_logits(network, loaded, samples),
            "pruned, distilled and int8": _bundle_logits(bundle, network, samples),
        }
        before, after = _num_macs(bundle)
        left = f"{after:,} of {before:,}"
        yield Figure(_SECTION, network.name, f"ratio {ratio}: multiplications left", 100 * after / before, "%", left)
        for name, actual in answers.items():
            same = 100 * float((original.argmax(1) == actual.argmax(1)).mean())
            remark = f"mean cosine of the logits {mean_cosine(original, actual):.4f}, {len(samples)} held-out samples"
            yield Figure(_SECTION, network.name, f"ratio {ratio}: same class, {name}", same, "%", remark)


def _macs(name: str, pairs: Sequence[Pair]) -> Figure:
    counts = [_num_macs(pair.bundle) for pair in pairs]
    fewer = min(before / after for before, after in counts)
    return Figure(_SECTION, name, "multiplications, teacher / student", fewer, "x", "{:,} -> {:,}".format(*counts[0]))


def num_macs(history: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Return the multiply-accumulates before the first step of a bundle's history that counts them and after the last.

    JSON has the steps sorted by name; a step leaves no more than it found.
    """
    steps = [step for step in history.values() if "after" in step]
    return max(step["before"]["num_macs"] for step in steps), min(step["after"]["num_macs"] for step in steps)


def _num_macs(bundle: Path) -> tuple[int, int]:
    return num_macs(parity.read_bundle(str(bundle))["history"])


def _drop(name: str, figure: str, pairs: Sequence[Pair]) -> Figure:
    """Return the drop over all samples of all pairs, with its interval."""
    teacher, student = _joined(pairs)
    interval = paired_interval(teacher, student)
    each = ", ".join(f"{100 * p.teacher_right.mean():.2f} -> {100 * p.student_right.mean():.2f}" for p in pairs)
    remark = f"top-1 {each} %; drop within {100 * interval.low:.2f} and {100 * interval.high:.2f}"
    return Figure(_SECTION, name, figure, 100 * float((teacher - student).mean()), "%", remark)


def _joined(pairs: Sequence[Pair]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    teachers, students = zip(*((pair.teacher_right, pair.student_right) for pair in pairs), strict=True)
    return np.concatenate(teachers), np.concatenate(students)


def _scratch(network: Network, pair: Pair, samples: Sequence[Sample]) -> Figure:
    """Return what the student has over a network of its shape that was trained as long as teacher and student."""
    recipe = network.loaded.recipe
    assert recipe.train is not None
    epochs = recipe.train.epochs + recipe.compress["distill"].epochs
    narrow = {"model.arguments.widths": PRUNED_WIDTHS, "train.epochs": epochs, "compress": []}
    scratch = trained_pair(
        network, load_recipe(network.reference, narrow), network.folder / "compression" / "scratch", samples
    )
    gain = 100 * float((pair.student_right - scratch.student_right).mean())
    remark = f"{100 * scratch.student_right.mean():.2f} % from scratch as int8, {epochs} epochs"
    return Figure(_SECTION, network.name, "student over the same net from scratch", gain, "%", remark)


def _held_out(loaded: LoadedRecipe) -> list[Sample]:
    """Return all held-out samples of a recipe, more than its bundles need.

    Raises:
        NotMeasured: they are not there.
    """
    inputs = loaded.recipe.model.inputs
    try:
        dataset = find_dataset(loaded.recipe.calibration, loaded.folder).open("held_out", inputs)
    except EdgeoptError as error:
        raise NotMeasured(f"{loaded.recipe.name}: {error.message}; {error.hint}") from error
    return list(checked_samples(dataset, len(dataset), inputs, "held_out"))


def _first_steps(loaded: LoadedRecipe, count: int) -> LoadedRecipe:
    """Return the recipe with only the first steps of its chain."""
    steps = dict(islice(loaded.recipe.compress.items(), count))
    return replace(loaded, recipe=replace(loaded.recipe, compress=steps))


def _float_logits(network: Network, loaded: LoadedRecipe, samples: Sequence[Sample]) -> NDArray[np.float64]:
    return _logits(float_answers(float_graph(network, loaded), samples))


def _bundle_logits(bundle: Path, network: Network, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return what a bundle answers, ``(N, classes)``, as the numbers that its integers stand for."""
    (facts,) = parity.read_bundle(str(bundle))["outputs"]
    answers = _logits(bundle_answers(bundle, network.inputs, samples))
    if facts["dtype"] == "float32":
        return answers
    return (answers - facts["zero_point"]) * facts["scale"]


def _logits(answers: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Return the one output of all answers, ``(N, classes)``."""
    return np.concatenate([np.asarray(next(iter(answer.values())), np.float64) for answer in answers])


def mean_cosine(reference: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Return the mean over samples of the cosine of their logits, ``(N, classes)`` each."""
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(actual, axis=1)
    return float(((reference * actual).sum(axis=1) / lengths).mean())
