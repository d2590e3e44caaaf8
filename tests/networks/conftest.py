"""Networks are exported, quantized and lowered once in a session, whichever suites look at them."""

from __future__ import annotations

from functools import cache

import pytest
from judging import Facts, Judged, judge

NUM_CALIBRATION, NUM_HELD_OUT = 8, 4  # of the random samples


@pytest.fixture(scope="session")
def judged_architecture(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Return the facts of an architecture with seeded weights, by name."""
    from architectures import ARCHITECTURES

    @cache
    def facts(name: str) -> Facts:
        given, folder = ARCHITECTURES[name], tmp_path_factory.mktemp("architecture")
        calibration, held_out = given.samples(NUM_CALIBRATION, seed=1), given.samples(NUM_HELD_OUT, seed=2)
        return judge(name, given.network(), calibration, held_out, folder)

    return facts


@pytest.fixture(scope="session")
def judged_network(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Return the facts of a trained network, by name."""
    from real_networks import NETWORKS

    @cache
    def facts(name: str) -> Facts:
        network, folder = NETWORKS[name](), tmp_path_factory.mktemp("network")
        return judge(name, network.source, network.calibration, network.held_out, folder)

    return facts
