"""An exponential moving average of a network's weights, which is often better than the weights of any one step.

    decay_t = min(decay, (1 + t) / (10 + t))            average = decay_t * average + (1 - decay_t) * weights

after step t. The smaller decay of the first steps lets the average leave the weights that training started from.
Running statistics of batch norm are averaged like weights, so that they fit them; whole numbers and masks are copied.

Source: Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, 1992; Szegedy et al.: Rethinking the
Inception Architecture, 2015, arXiv 1512.00567, section 8. The decay of the first steps is that of TensorFlow's
tf.train.ExponentialMovingAverage with num_updates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Average:
    """The average of one network in training."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.num_steps = 0
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights in, after a step of the optimizer."""
        decay = min(self._decay, (1 + self.num_steps) / (10 + self.num_steps))
        self.num_steps += 1
        for name, tensor in self._model.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1 - decay)
            else:
                self.weights[name].copy_(tensor)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"num_steps": self.num_steps, "weights": self.weights}

    def load(self, num_steps: int, weights: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` returned."""
        self.num_steps, self.weights = num_steps, weights
