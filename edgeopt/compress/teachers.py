"""One or several teachers as one network that answers, and says how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from edgeopt.compress.fit import logits_of, prefer_channels_last
from edgeopt.compress.weights import refuse_not_finite


class Teachers(nn.Module):
    """Frozen networks whose probabilities are averaged.

    Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 5.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        for number, network in enumerate(networks, start=1):
            refuse_not_finite(network, "teacher" if len(networks) == 1 else f"teacher {number}")
        self.networks = nn.ModuleList(prefer_channels_last(network) for network in networks)
        self.eval().requires_grad_(False)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return log probabilities ``(N, classes)``."""
        return self.soften(inputs, 1.0)

    def soften(self, inputs: tuple[torch.Tensor, ...], temperature: float) -> torch.Tensor:
        """Return the logarithm of the mean of the softened probabilities, ``(N, classes)``."""
        each = [functional.log_softmax(logits_of(network, inputs) / temperature, dim=1) for network in self.networks]
        return each[0] if len(each) == 1 else torch.stack(each).logsumexp(dim=0) - math.log(len(each))

    def train(self, _mode: bool = True) -> Teachers:
        """Stay in eval mode."""
        return super().train(False)
