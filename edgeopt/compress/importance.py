"""Importance: one number for each unit of a group, by which channels are ranked; the least important go first.

l1, l2        the L1 norm, or the squared L2 norm, of all weights that go with a channel (Li et al. 2017, arXiv
              1608.08710; over the whole group: Fang et al. 2023, arXiv 2301.12900)
outgoing_l1   the L1 norm of the weights that use it (He et al. 2014, node pruning, doi 10.1109/ICASSP.2014.6853595)
bn_scale      its factor in batch norm, ``|gamma|`` (Liu et al. 2017, Network Slimming, arXiv 1708.06519)
fpgm          the sum of its filter's distances from all others of the layer: who is near them all can be replaced
              (He et al. 2019, geometric median, arXiv 1811.00250)
lamp          its squared norm as a share of those that are not smaller (Lee et al. 2021, arXiv 2010.07611)
taylor        how much the loss would change, to first order: the mean over samples of ``(sum of gradient * weight)²``
              over the parameters that go with it (Molchanov et al. 2019, arXiv 1906.10771)
hessian       to second order at a minimum, ``sum of h * weight² / 2``, with the diagonal ``h`` of the Hessian
              estimated by the mean of squared gradients (LeCun et al. 1989, Optimal Brain Damage)
random        nothing: what every other one has to beat

Norms say nothing across layers of other shapes: they are divided by their mean over the group. The others are
comparable as they are, which is what a ranking over all layers needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeopt.compress.batches import Labelled
from edgeopt.compress.gradients import sample_gradients
from edgeopt.compress.groups import Group, channel_rows
from edgeopt.errors import CompressionError
from edgeopt.steps.prune import Importance

# The importance of each unit of each group, float64 (U,).
Scores = list[torch.Tensor]


@dataclass(frozen=True)
class Evidence:
    """What importance may look at: the network, and labelled samples where they are needed."""

    model: nn.Module
    samples: Callable[[], Labelled]
    seed: int


def score(importance: Importance, groups: Sequence[Group], evidence: Evidence) -> Scores:
    """Return the importance of each unit.

    Raises:
        CompressionError: a group has nothing that this importance looks at.
        DataError: samples are missing or not labelled.
    """
    match importance:
        case "l1":
            return [_relative(group.of_units(group.channel_sums(torch.abs))) for group in groups]
        case "l2":
            return [_relative(group.of_units(group.channel_sums(torch.square))) for group in groups]
        case "outgoing_l1":
            return [_relative(group.of_units(_outgoing(group))) for group in groups]
        case "bn_scale":
            return [group.of_units(_batch_norm_scales(group)) for group in groups]
        case "fpgm":
            return [_relative(group.of_units(_distances(group))) for group in groups]
        case "lamp":
            return [_share_of_larger(group.of_units(group.channel_sums(torch.square))) for group in groups]
        case "taylor":
            return _taylor(groups, evidence)
        case "hessian":
            return _hessian(groups, evidence)
        case "random":
            generator = torch.Generator().manual_seed(evidence.seed)
            return [torch.rand(group.num_units, generator=generator, dtype=torch.float64) for group in groups]


def _relative(scores: torch.Tensor) -> torch.Tensor:
    """Divide by the mean; zeros stay zeros."""
    return scores / scores.mean().clamp_min(torch.finfo(torch.float64).tiny)


def _outgoing(group: Group) -> torch.Tensor:
    if not any(member.side == "uses" for member in group.members):
        raise _not_fitting("outgoing_l1", group, "no convolution or linear layer uses its channels")
    return group.channel_sums(torch.abs, sides=["uses"])


def _batch_norm_scales(group: Group) -> torch.Tensor:
    """Return the mean of ``|gamma|`` over the batch norms that scale a channel."""
    norms = [member for member in group.members if isinstance(member.layer, _BatchNorm) and member.layer.affine]
    if not norms:
        raise _not_fitting("bn_scale", group, "no batch norm scales its channels")
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in norms:
        total.index_add_(0, member.channels, member.rows(torch.abs, biases=False)[0].sum(dim=1))
    return total / len(norms)


def _distances(group: Group) -> torch.Tensor:
    """Return the sum over the layers that make a channel of its filter's distances from the others."""
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in group.members:
        if member.side == "makes":
            filters = channel_rows(member.layer, member.layer.weight, member.side).detach()[member.own].double()  # type: ignore[arg-type]
            apart = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
            total.index_add_(0, member.channels, apart.sum(dim=1))
    return total


def _share_of_larger(scores: torch.Tensor) -> torch.Tensor:
    """Divide each by the sum of those that are not smaller, itself among them; of equals, the first is the smallest."""
    order = torch.argsort(scores, stable=True)
    not_smaller = scores[order].flip(0).cumsum(0).flip(0)
    shares = torch.empty_like(scores)
    shares[order] = scores[order] / not_smaller.clamp_min(torch.finfo(torch.float64).tiny)
    return shares


def _taylor(groups: Sequence[Group], evidence: Evidence) -> Scores:
    totals = [torch.zeros(group.num_units, dtype=torch.float64) for group in groups]
    samples = evidence.samples()
    for gradients in sample_gradients(evidence.model, samples):
        for total, group in zip(totals, groups, strict=True):
            total += _slopes(group, gradients)[group.units].sum(dim=1).square()
    return [total / len(samples) for total in totals]


def _slopes(group: Group, gradients: Mapping[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return group.channel_sums(lambda weight: weight * gradients[weight], biases=True)


def _hessian(groups: Sequence[Group], evidence: Evidence) -> Scores:
    samples = evidence.samples()
    squared: dict[torch.Tensor, torch.Tensor] = {
        weight: torch.zeros_like(weight, dtype=torch.float64) for weight in evidence.model.parameters()
    }
    for gradients in sample_gradients(evidence.model, samples):
        for weight, gradient in gradients.items():
            squared[weight] += gradient.double().square()
    count = len(samples)

    def saliency(weight: torch.Tensor) -> torch.Tensor:
        return weight.double().square() * squared[weight] / count / 2

    return [group.of_units(group.channel_sums(saliency, biases=True)) for group in groups]


def _not_fitting(importance: Importance, group: Group, why: str) -> CompressionError:
    return CompressionError(
        f"importance = {importance!r} does not fit layer {group.name!r}: {why}",
        hint=f'name it in ignored_layers, or set importance = "l2"{_also(group)}',
    )


def _also(group: Group) -> str:
    others = [name for name in group.makers if name != group.name]
    return f"; it loses its channels together with {', '.join(others)}" if others else ""
