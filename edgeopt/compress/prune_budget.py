"""The smallest pruning ratio that keeps a budget, found by bisection: each candidate is pruned and its cost is taken.

num_macs     multiply-accumulates of convolutions and linear layers for one sample
model_bytes  weights as int8 holds them: one byte each, four for each bias and for each parameter that stays float
latency      how long the candidate takes in the target's runtime, as a share of the unpruned network

Source: bisection on the ratio for a latency is what NetAdapt does layer by layer (Yang et al. 2018, arXiv 1804.03230).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeopt.compress.layers import PRUNABLE, count_macs, num_channels
from edgeopt.compress.step import StepContext
from edgeopt.errors import CompressionError
from edgeopt.stage import logger, report_progress
from edgeopt.steps.prune import PruneBudget, PruneSettings

# Counts are exact; two latencies that are closer than that are the same.
_STEPS = {"num_macs": 1024, "model_bytes": 1024, "latency": 64}

Cost = Callable[[nn.Module], float]


@dataclass(frozen=True)
class BudgetReport:
    """What was limited, the limit, and the cost before and after; of a latency, shares of the unpruned network's."""

    kind: str
    limit: float
    before: float
    after: float


def cost_function(context: StepContext, settings: PruneSettings, whole: nn.Module) -> Cost:
    """Return what takes the cost of a candidate.

    Raises:
        CompressionError: a latency is asked for where nothing can measure it.
    """
    assert settings.budget is not None
    if settings.budget.kind == "num_macs":
        return lambda model: count_macs(model, context.example_inputs) / context.example_inputs[0].shape[0]
    if settings.budget.kind == "model_bytes":
        return int8_bytes
    if context.relative_latency is None or settings.target is None:
        raise CompressionError(
            "a latency budget needs a recipe, which says how the network is exported and quantized",
            hint="run the step by edgeopt build, or give a budget of num_macs",
        )
    measure, target = context.relative_latency, settings.target
    return lambda model: 1.0 if model is whole else measure(model, whole, target)


def int8_bytes(model: nn.Module) -> int:
    """Return how many bytes the weights take in int8, with batch norms folded into what is before them."""
    biases = sum(4 * num_channels(layer) for layer in model.modules() if isinstance(layer, PRUNABLE))
    counted = {
        id(layer.bias) for layer in model.modules() if isinstance(layer, PRUNABLE) and layer.bias is not None
    } | {id(weight) for layer in model.modules() if isinstance(layer, _BatchNorm) for weight in layer.parameters()}
    rest = (weight for weight in model.parameters() if id(weight) not in counted)
    return biases + sum(weight.numel() * (1 if weight.dim() > 1 else 4) for weight in rest)


def limit_of(budget: PruneBudget, before: float, share: float) -> float:
    """Return what a candidate may cost ``share`` of the way from ``before`` to the budget."""
    final = budget.value * before if budget.value < 1 else budget.value
    return before - (before - final) * share if final < before else final


def smallest_ratio(candidate: Callable[[float], nn.Module], cost: Cost, limit: float, kind: str) -> float:
    """Return the smallest ratio whose candidate costs at most ``limit``; 0 if nothing has to go.

    Args:
        candidate: returns the network pruned by a ratio.
        cost: takes its cost, which falls as the ratio rises.
        limit: of the cost.
        kind: of the cost, for messages.

    Raises:
        CompressionError: not even the largest ratio is enough; says how far it comes.
    """
    num_steps = _STEPS[kind]
    low, high = -1, num_steps - 1
    tried = {high: cost(candidate(high / num_steps))}
    if tried[high] > limit:
        raise CompressionError(
            f"budget: {kind} of at most {limit:,.4g} cannot be reached: with all channels gone that may go, "
            f"{tried[high]:,.4g} are left",
            hint=f"give a budget of at least {tried[high]:,.4g}, lower round_to or ignore fewer layers",
        )
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = cost(candidate(middle / num_steps))
        report_progress(f"ratio for {kind}", len(tried), num_steps.bit_length(), f"{middle / num_steps:.1%}")
        low, high = (low, middle) if tried[middle] <= limit else (middle, high)
    logger.info("%s: %.4g of %.4g at ratio %.3f", kind, tried[high], limit, high / num_steps)
    return high / num_steps
