"""What a network costs before it is exported: parameters, those that are not zero, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from edgeopt.compress.layers import count_macs


@dataclass(frozen=True)
class NetworkSize:
    """What a network costs: ``num_macs`` for one sample, ``weights_bytes`` of all parameters and buffers as they are.

    ``num_nonzero`` counts the parameters that are not zero.
    """

    num_parameters: int
    num_nonzero: int
    num_macs: int
    weights_bytes: int


def network_size(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> NetworkSize:
    """Return what a network costs for one sample."""
    return NetworkSize(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_nonzero=sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        num_macs=count_macs(model, example_inputs) // example_inputs[0].shape[0],
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
    )
