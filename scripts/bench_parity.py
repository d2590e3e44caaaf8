"""What the bundles answer in their real runtimes: against each other, and against the float network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from bench_figures import Figure
from bench_network import Network, NotMeasured

from edgeopt import parity
from edgeopt.samples import Sample

Facts = dict[str, Any]
Answers = Sequence[Mapping[str, Any]]


def parity_figures(network: Network, count: int) -> Iterator[Figure]:
    """Run the arm64 and the x86 bundle on the same held-out samples and count output values and steps apart."""
    samples = network.samples("held_out", count)
    pair = ("arm64", "x86")
    absent = [target for target in pair if target not in network.bundles]
    if absent:
        raise NotMeasured(f"there is no target {absent[0]}")
    answers = [network.answers(target, samples) for target in pair]
    equal = total = worst = 0
    for mine, other in zip(*(network.manifests[target]["outputs"] for target in pair), strict=True):
        for first, second in zip(*answers, strict=True):
            apart = steps_apart(first[mine["name"]], mine, second[other["name"]], other)
            equal, total = equal + int(np.count_nonzero(apart == 0)), total + apart.size
            worst = max(worst, int(apart.max()))
    remark = f"{equal:,} of {total:,} values on {len(samples)} samples, LiteRT and ONNX Runtime on this machine"
    yield Figure("parity", network.name, "output values equal", 100 * equal / total, "%", remark)
    yield Figure("parity", network.name, "worst difference", worst, "steps", "of any value on any sample")


def agreement_figures(network: Network, count: int) -> Iterator[Figure]:
    """Compare each bundle with the float network on held-out samples."""
    samples = network.samples("held_out", count)
    reference = network.float_answers(samples)
    for target, manifest in network.manifests.items():
        answers = real_answers(network.answers(target, samples), manifest["outputs"])
        yield from agreement(network.name, target, samples, reference, answers)


def agreement(
    network: str, label: str, samples: Sequence[Sample], reference: Answers, actual: Answers
) -> Iterator[Figure]:
    """Compare real answers with the float network's: the class, and the noise of the worst sample."""
    (name,) = reference[0]
    pairs = [(first[name], second[name]) for first, second in zip(reference, actual, strict=True)]
    same = sum(int(np.argmax(first) == np.argmax(second)) for first, second in pairs)
    ratios = [parity.sqnr_db(first, second) for first, second in pairs]
    worst = int(np.argmin(ratios))  # NaN comes out as the smallest
    remark = f"{same} of {len(pairs)} held-out samples"
    yield Figure("agreement", network, f"{label}: same class as float", 100 * same / len(pairs), "%", remark)
    yield Figure("agreement", network, f"{label}: worst SQNR", ratios[worst], "dB", f"sample {samples[worst].name}")


def real_answers(answers: Answers, outputs: Sequence[Facts]) -> list[dict[str, Any]]:
    """Return answers as the real numbers they stand for."""
    return [{facts["name"]: parity.to_real(answer[facts["name"]], facts) for facts in outputs} for answer in answers]


def steps_apart(first: Any, first_facts: Facts, second: Any, second_facts: Facts) -> Any:
    """Return how many steps of their common scale two outputs lie apart, value by value.

    Raises:
        NotMeasured: if they have different scales, so that there is no common step.
    """
    if first_facts["scale"] != second_facts["scale"]:
        raise NotMeasured(f"scales {first_facts['scale']} and {second_facts['scale']} have no common step")
    return np.abs(_from_zero(first, first_facts) - _from_zero(second, second_facts))


def _from_zero(values: Any, facts: Facts) -> Any:
    return parity.to_steps(values, facts) - (facts["zero_point"] if facts["integer_dtype"] else 0)
