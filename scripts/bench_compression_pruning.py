"""Which importance ranks channels best: one teacher, pruned to the same MACs by each, trained alike, as it ships."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from bench_figures import Figure
from bench_network import Network, NotMeasured

from edgeopt.explore.trial import run_trial
from edgeopt.steps.prune import Importance

_SECTION = "pruning"
_TARGET = "arm64"
_SHARE_OF_MACS = 0.1

_TRAINING = {"epochs": 2, "batch_size": 64, "learning_rate": 3e-3, "validation_share": 0.0}
_FINETUNE = {"method": "finetune", **_TRAINING}


def _by(importance: str, **settings: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the chain that prunes by an importance and trains a little, too little to make all alike."""
    return {"method": "prune", "budget": {"num_macs": _SHARE_OF_MACS}, "importance": importance, **settings}, _FINETUNE


_CHAINS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    **{name: _by(name) for name in get_args(Importance)},  # each layer loses the same share
    "l2, global": _by("l2", scope="global"),
    "taylor, global": _by("taylor", scope="global"),
    "l2, by sensitivity": _by("l2", scope="sensitivity"),
    "l2, 3 iterations": _by("l2", iterations=3, finetune={**_TRAINING, "epochs": 1}),
}


def pruning_figures(network: Network) -> Iterator[Figure]:
    """Give the int8 model's accuracy on held-out samples after each chain, and what the chain left."""
    for name, chain in _CHAINS.items():
        values = {"compress": [dict(step) for step in chain], "latency.compare": False}
        result = run_trial(network.reference, _TARGET, values, network.folder / "pruning")
        here = result.figures
        if here.metric is None or here.num_macs is None:
            raise NotMeasured(f"{name}: {result.error}")
        remark = f"{here.num_macs:,} MACs, {here.num_parameters:,} parameters"
        yield Figure(_SECTION, network.name, f"{here.metric_name}, {name}", 100 * here.metric, "%", remark)
