"""The steps of ``[[compress]]``: one record a method, and what each can be told.

A recipe has them in the order in which they are done. A step has the name of its method unless it says another; the
second one of a method is ``prune-2``. Overrides address it by that name: ``compress.prune.pruning_ratio``.
"""

from __future__ import annotations

import re
from typing import Any

from edgeopt.errors import RecipeError
from edgeopt.steps.distill import DistillSettings
from edgeopt.steps.factorize import FactorizeSettings
from edgeopt.steps.finetune import FinetuneSettings
from edgeopt.steps.low_bit import LowBitSettings
from edgeopt.steps.network import NetworkSettings
from edgeopt.steps.prune import PruneSettings
from edgeopt.steps.replace_activations import ReplaceActivationsSettings
from edgeopt.steps.share import ShareSettings
from edgeopt.steps.sparsify import SparsifySettings
from edgeopt.steps.transfer import TransferSettings

__all__ = [
    "DistillSettings",
    "FactorizeSettings",
    "FinetuneSettings",
    "LowBitSettings",
    "NetworkSettings",
    "PruneSettings",
    "ReplaceActivationsSettings",
    "ShareSettings",
    "SparsifySettings",
    "Step",
    "TransferSettings",
    "named_steps",
    "other_networks",
]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")

Step = (
    DistillSettings
    | FactorizeSettings
    | FinetuneSettings
    | LowBitSettings
    | PruneSettings
    | ReplaceActivationsSettings
    | ShareSettings
    | SparsifySettings
    | TransferSettings
)


def other_networks(step: Step) -> tuple[NetworkSettings, ...]:
    """Return the networks beside the recipe's own that a step is made from."""
    if isinstance(step, DistillSettings):
        return step.teachers
    return (step,) if isinstance(step, NetworkSettings) else ()


def named_steps(tables: list[Any]) -> dict[str, Any]:
    """Return the tables of ``[[compress]]`` by name, in their order, without the key ``name``.

    Raises:
        RecipeError: a step is no table, does not say its method, or has the name of another.
    """
    named: dict[str, Any] = {}
    for number, table in enumerate(tables, start=1):
        if not isinstance(table, dict) or not isinstance(table.get("method"), str):
            raise RecipeError(f"[[compress]] step {number} does not say its method", hint='method = "prune"')
        count = sum(other["method"] == table["method"] for other in named.values())
        own = table["method"] if count == 0 else f"{table['method']}-{count + 1}"
        name = table.get("name", own)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RecipeError(f"[[compress]] step {number}: a name is letters, digits, '_' and '-', got {name!r}")
        if name in named:
            raise RecipeError(f"[[compress]] has two steps called {name!r}", hint="give one of them another 'name'")
        named[name] = {key: value for key, value in table.items() if key != "name"}
    return named
