"""Gradients of the loss, sample by sample, on a choice of samples that their order in the data set does not change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from edgeopt.compress.batches import Labelled
from edgeopt.compress.class_loss import cross_entropy
from edgeopt.compress.fit import logits_of
from edgeopt.compress.strided import strided_before
from edgeopt.stage import track


def chosen_samples(data: Labelled, count: int) -> Labelled:
    """Return at most ``count`` samples: those whose SHA-256 of inputs and label is smallest, in the order of that."""
    digests = [_digest(data.take(torch.tensor([index]))) for index in range(len(data))]
    return data.take(torch.tensor(sorted(range(len(data)), key=digests.__getitem__)[:count]))


def sample_gradients(model: nn.Module, samples: Labelled) -> Iterator[dict[torch.Tensor, torch.Tensor]]:
    """Yield for each sample the gradient of its cross entropy by parameter; zeros where there is none.

    ``model`` is in eval mode and its parameters take gradients. Nothing of it is changed.

    Raises:
        CompressionError: the network has not one output of logits ``(N, classes)``.
    """
    parameters = list(model.parameters())
    with strided_before(model):
        for index in track(range(len(samples)), total=len(samples), description="gradients"):
            one = samples.take(torch.tensor([index]))
            assert one.labels is not None
            loss = cross_entropy(logits_of(model, one.inputs), one.labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            yield dict(zip(parameters, gradients, strict=True))


def _digest(sample: Labelled) -> bytes:
    digest = hashlib.sha256()
    for tensor in (*sample.inputs, *(() if sample.labels is None else (sample.labels,))):
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.digest()
