"""One step of ``[[compress]]``: which function does it, and what it changed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.nn.utils import parametrize

from edgeopt.compress.size import NetworkSize, network_size
from edgeopt.compress.step import StepContext, result_in
from edgeopt.errors import CompressionError
from edgeopt.steps import (
    DistillSettings,
    FactorizeSettings,
    FinetuneSettings,
    LowBitSettings,
    PruneSettings,
    ReplaceActivationsSettings,
    ShareSettings,
    SparsifySettings,
    Step,
    TransferSettings,
)

_LEAVES_WEIGHTS_COMPUTED = (FinetuneSettings, ReplaceActivationsSettings, TransferSettings)


class StepReport(Protocol):
    """What a method reports: a dataclass of plain values, and one line about it."""

    @property
    def summary(self) -> str:
        """What came of it, for people; nothing where the sizes say it all."""


def run_step(context: StepContext, step: Step, folder: Path) -> tuple[dict[str, Any], str]:
    """Do one step, and return its report as JSON types and one line about it.

    The network that the step handed on is built again from its files, so that what is counted is what comes next.

    Raises:
        CompressionError: the step cannot be done.
    """
    network = context.build(context.source)
    if not isinstance(step, _LEAVES_WEIGHTS_COMPUTED):
        _refuse_computed_weights(network)
    before = network_size(network, context.example_inputs)
    report = _do(context, step, folder)
    after = network_size(context.build(result_in(folder)), context.example_inputs)
    content = {"method": step.method, "before": asdict(before), "after": asdict(after), **asdict(report)}  # type: ignore[call-overload]
    return content, "; ".join(filter(None, (*_changes(before, after), report.summary)))


def _refuse_computed_weights(network: nn.Module) -> None:
    for name, layer in network.named_modules():
        if parametrize.is_parametrized(layer):
            raise CompressionError(
                f"layer {name!r} computes its weight while it runs, and a step would change it behind its back",
                hint="torch.nn.utils.parametrize.remove_parametrizations makes it a plain weight, in the factory",
            )


def _do(context: StepContext, step: Step, folder: Path) -> StepReport:
    # Imported one by one: a method's packages are loaded for a recipe that names it.
    match step:
        case PruneSettings():
            from edgeopt.compress.prune import prune

            return prune(context, step, folder)
        case FinetuneSettings():
            from edgeopt.compress.finetune import finetune

            return finetune(context, step, folder)
        case DistillSettings():
            from edgeopt.compress.distill import distill

            return distill(context, step, folder)
        case FactorizeSettings():
            from edgeopt.compress.factorize import factorize

            return factorize(context, step, folder)
        case ReplaceActivationsSettings():
            from edgeopt.compress.replace_activations import replace_activations

            return replace_activations(context, step, folder)
        case LowBitSettings():
            from edgeopt.compress.low_bit import low_bit

            return low_bit(context, step, folder)
        case ShareSettings():
            from edgeopt.compress.share import share

            return share(context, step, folder)
        case SparsifySettings():
            from edgeopt.compress.sparsify import sparsify

            return sparsify(context, step, folder)
        case TransferSettings():
            from edgeopt.compress.transfer import transfer

            return transfer(context, step, folder)


def _changes(before: NetworkSize, after: NetworkSize) -> list[str]:
    """Say what became fewer or more."""
    counts = [
        ("parameters", before.num_parameters, after.num_parameters),
        ("MACs", before.num_macs, after.num_macs),
        ("nonzero", before.num_nonzero, after.num_nonzero),
    ]
    changed = [(name, was, now) for name, was, now in counts if was != now]
    sizes = [f"{was:,} -> {now:,} {name}" for name, was, now in changed if name != "nonzero"]
    # Where parameters went, fewer are left that are not zero: no news.
    zeroed = [f"{was:,} -> {now:,} that are not zero" for name, was, now in changed if name == "nonzero" and not sizes]
    return [", ".join(sizes + zeroed)] if sizes + zeroed else []
