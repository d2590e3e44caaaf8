"""The optimizers of PyTorch that a training can name."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from edgeopt.errors import CompressionError
from edgeopt.training import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Return the optimizer that the settings name, over all parameters that want a gradient.

    Raises:
        CompressionError: there are none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise CompressionError("the network has no parameters to train")
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.optimizer:
        case "sgd":
            momentum, nesterov = settings.momentum, settings.nesterov
            return SGD(parameters, lr=rate, momentum=momentum, nesterov=nesterov, weight_decay=decay)
        case "adagrad":
            return Adagrad(parameters, lr=rate, weight_decay=decay)
        case "rmsprop":
            return RMSprop(parameters, lr=rate, weight_decay=decay)
        case "adam":
            return Adam(parameters, lr=rate, weight_decay=decay)
        case "adamw":
            return AdamW(parameters, lr=rate, weight_decay=decay)
