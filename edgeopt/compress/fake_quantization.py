"""Rounding to 8 bits while a network learns, so that it learns to live with it; gradients pass as if nothing was.

    weights      symmetric in [-127, 127], a scale for each output channel from its largest magnitude
    activations  8 bits for each tensor that a convolution or linear layer takes, and for the network's outputs, from a
                 running range that zero is in; asymmetric, or symmetric

The rules are those of :mod:`edgeopt.quantize.scheme`. What happens between these layers (sums, means) is not rounded
here.

Source: Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877, section 3; Bengio et al.: Estimating or Propagating Gradients Through Stochastic Neurons, 2013,
arXiv 1308.3432 (straight through).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from edgeopt.compress.layers import prunable_layers
from edgeopt.compress.structure import LOW_BIT_KINDS, Constraint

_MOMENTUM = 0.05


def straight_through(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return ``rounded`` with the gradient of ``exact``."""
    return exact + (rounded - exact).detach()


class RoundedWeight(nn.Module):
    """A weight on the grid that int8 gives it, with a scale for each index of ``channel_axis``, or one for all."""

    def __init__(self, channel_axis: int | None) -> None:
        super().__init__()
        self.channel_axis = channel_axis

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight; a channel of zeros stays one."""
        others = [axis for axis in range(weight.dim()) if axis != self.channel_axis]
        scale = weight.detach().abs().amax(dim=others, keepdim=True) / 127
        scale = scale.where(scale > 0, 1.0)
        return straight_through(weight, (weight / scale).round().clamp(-127, 127) * scale)


class RoundedActivation(nn.Module):
    """A tensor on the grid that int8 gives it; the range follows what it sees while training."""

    minimum: torch.Tensor
    maximum: torch.Tensor
    is_empty: torch.Tensor

    def __init__(self, *, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        for name in ("minimum", "maximum"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("is_empty", torch.ones((), dtype=torch.bool))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rounded values, float32; what lies outside the range is clipped, and learns nothing from there."""
        values = values.float()
        if self.training:
            self._follow(values.detach())
        if bool(self.is_empty):
            return values
        low, high, scale, zero_point = self._grid()
        inside = values.clamp((low - zero_point) * scale, (high - zero_point) * scale)
        rounded = ((inside / scale).round() + zero_point).clamp(low, high) - zero_point
        return straight_through(inside, rounded * scale)

    def _grid(self) -> tuple[int, int, torch.Tensor, torch.Tensor]:
        """Return the smallest and largest integer, the scale and the zero point."""
        tiny = torch.finfo(torch.float32).tiny
        if self.symmetric:
            largest = torch.maximum(self.maximum, -self.minimum).clamp_min(tiny)
            return -127, 127, largest / 127, torch.zeros(())
        scale = ((self.maximum - self.minimum) / 255).clamp_min(tiny)
        return -128, 127, scale, (-128 - self.minimum / scale).round().clamp(-128, 127)

    def _follow(self, values: torch.Tensor) -> None:
        low, high = values.min().clamp_max(0), values.max().clamp_min(0)
        share = torch.where(self.is_empty, 1.0, _MOMENTUM)
        self.minimum.lerp_(low, share)
        self.maximum.lerp_(high, share)
        self.is_empty.fill_(False)


class ActivationRounding(nn.ModuleList):
    """The roundings of a network's activations: one for the input of each layer in order, and one for its outputs."""

    def __init__(self, network: nn.Module, *, symmetric: bool) -> None:
        names = list(prunable_layers(network))
        super().__init__(RoundedActivation(symmetric=symmetric) for _ in (*names, "outputs"))
        self._names = names

    @contextmanager
    def applied(self, network: nn.Module, constraints: Mapping[str, Constraint]) -> Iterator[None]:
        """Round inside the block; weights are left where they were rounded to.

        Weights that are shared get one scale for all channels, so that a value is rounded to one value everywhere;
        those of few bits are whole numbers already.
        """
        layers = {name: network.get_submodule(name) for name in self._names}
        hooks = [
            layers[name].register_forward_pre_hook(
                lambda _, inputs, rounding=rounding: (rounding(inputs[0]), *inputs[1:])
            )
            for name, rounding in zip(self._names, self, strict=False)
        ]
        hooks.append(network.register_forward_hook(lambda _network, _inputs, output: _rounded_output(self[-1], output)))
        rounded = []
        for name, layer in layers.items():
            kind = constraints.get(f"{name}.weight", {}).get("kind")
            if kind not in LOW_BIT_KINDS:
                axis = None if kind == "shared" else 1 if isinstance(layer, _ConvTransposeNd) else 0
                rounded.append(layer)
                parametrize.register_parametrization(layer, "weight", RoundedWeight(axis))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer in rounded:
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _rounded_output(rounding: nn.Module, output: Any) -> Any:
    return rounding(output) if isinstance(output, torch.Tensor) else output
