"""Batch norm over the whole batch when each process has a part of it, and a penalty on its factors.

PyTorch's SyncBatchNorm does this on GPUs only. Here mean and variance are summed over the processes, and so are their
gradients, so that a network with batch norm trains as in one process.

Source: Ioffe, Szegedy: Batch Normalization, 2015, arXiv 1502.03167, algorithm 1; the unbiased variance in the running
statistics is PyTorch's, https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeopt.compress.parallel import num_processes


@contextmanager
def whole_batch_norm(model: nn.Module) -> Iterator[None]:
    """Let each batch norm of ``model`` look at the whole batch inside the block, if there are several processes."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)] if num_processes() > 1 else []
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def add_penalty(model: nn.Module, penalty: float) -> None:
    """Add to the gradients of batch norms' factors those of ``penalty`` times the sum of their magnitudes.

    Source: Liu et al.: Learning Efficient Convolutional Networks through Network Slimming, 2017, arXiv 1708.06519,
    equation 1.
    """
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.weight is not None and layer.weight.grad is not None:
            layer.weight.grad.add_(layer.weight.sign(), alpha=penalty)


def _forward(layer: _BatchNorm, values: torch.Tensor) -> torch.Tensor:
    """Normalise ``values`` ``(N, C, ...)``, this process's part of the batch."""
    if not layer.training:
        return type(layer).forward(layer, values)
    values = values.float()
    values_first = values.transpose(0, 1)
    if values[:, 0].numel() == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(values.shape)}")
    count = _total(torch.tensor(float(values[:, 0].numel())))
    shape = (-1, *[1] * (values.dim() - 2))
    mean = _total(values_first.flatten(1).sum(dim=1)) / count
    centred = values - mean.view(shape)
    variance = _total(centred.square().transpose(0, 1).flatten(1).sum(dim=1)) / count
    if layer.track_running_stats:
        _track(layer, mean.detach(), (variance * count / (count - 1)).detach())
    normed: torch.Tensor = centred * (variance + layer.eps).rsqrt().view(shape)
    return normed * layer.weight.view(shape) + layer.bias.view(shape) if layer.affine else normed


class _Total(torch.autograd.Function):
    """The sum over all processes, through which gradients go back to all of them."""

    @staticmethod
    def forward(_context: Any, part: torch.Tensor) -> torch.Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _total(part: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _Total.apply(part)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def _track(layer: _BatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Take the batch into the running statistics."""
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    momentum = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    for running, new in ((layer.running_mean, mean), (layer.running_var, variance)):
        assert running is not None
        running.lerp_(new.to(running.dtype), momentum)
