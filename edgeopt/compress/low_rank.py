"""One layer as a product of smaller ones: which ranks keep how much, the layers, and their weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgeopt.compress.structure import Edit
from edgeopt.errors import CompressionError, MissingDependencyError

_CP_ITERATIONS = 200


def replaceable(layer: nn.Module) -> bool:
    """Return whether a layer is linear or a convolution in one group, not a transposed one."""
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd) and layer.groups == 1


def form_of(layer: nn.Module, spatial_form: str) -> str:
    """Return ``svd`` for a layer without a kernel of more than one point, else ``spatial_form``."""
    return "svd" if _weight(layer)[0, 0].numel() == 1 else spatial_form


def ranks_of_energy(layer: nn.Module, form: str, energy: float) -> tuple[int, ...]:
    """Return the smallest ranks that keep a share of the squared singular values of the weight.

    ``svd`` has one rank, ``tucker2`` has one of the output and one of the input channels, each by the weight unfolded
    along it. CP has no such bound: it gets the larger of these two.
    """
    weight = _weight(layer).double()
    unfolded = [weight.flatten(1)] if form == "svd" else [weight.flatten(1), weight.transpose(0, 1).flatten(1)]
    ranks = []
    for matrix in unfolded:
        kept = torch.linalg.svdvals(matrix).square().cumsum(0)
        # A little less than all, so that the rounding of the sum does not ask for a rank more.
        ranks.append(min(len(kept), int((kept < energy * kept[-1] * (1 - 1e-12)).sum()) + 1))
    return (max(ranks),) if form == "cp" else tuple(ranks)


def largest_ranks(layer: nn.Module, form: str) -> tuple[int, ...]:
    """Return the ranks beyond which nothing is gained."""
    weight = _weight(layer)
    num_out, num_in = weight.shape[:2]
    kernel = weight[0, 0].numel()
    if form == "svd":
        return (min(num_out, num_in),)
    if form == "tucker2":
        return min(num_out, num_in * kernel), min(num_in, num_out * kernel)
    return (num_out * num_in * kernel // max(weight.shape),)


def product(layer: nn.Module, form: str, ranks: Sequence[int]) -> nn.Sequential:
    """Return the layers of the product with weights that are not set yet; the last one has the bias."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        (rank,) = ranks
        return nn.Sequential(nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias))
    assert isinstance(layer, _ConvNd)
    convolution: Any = type(layer)
    num_in, num_out = layer.in_channels, layer.out_channels
    placed = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    padded = {"padding_mode": layer.padding_mode}
    if form == "svd":
        (rank,) = ranks
        first = convolution(num_in, rank, layer.kernel_size, bias=False, **placed, **padded)
        return nn.Sequential(first, convolution(rank, num_out, 1, bias=bias))
    if form == "tucker2":
        rank_out, rank_in = ranks
        middle = convolution(rank_in, rank_out, layer.kernel_size, bias=False, **placed, **padded)
        return nn.Sequential(
            convolution(num_in, rank_in, 1, bias=False), middle, convolution(rank_out, num_out, 1, bias=bias)
        )
    (rank,) = ranks
    along = [_one_axis(layer, axis, rank, convolution) for axis in range(len(layer.kernel_size))]
    return nn.Sequential(convolution(num_in, rank, 1, bias=False), *along, convolution(rank, num_out, 1, bias=bias))


def fill_product(layer: nn.Module, form: str, layers: nn.Sequential) -> float:
    """Set the weights of a product so that it comes near to ``layer``.

    Returns:
        The error of its weights, as a share of their Frobenius norm.

    Raises:
        MissingDependencyError: ``tucker2`` and ``cp`` need the extra ``factorize``.
    """
    weight = _weight(layer).double()
    first, last = _weight(layers[0]), _weight(layers[-1])
    if form == "svd":
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        rank = first.shape[0]
        root = values[:rank].sqrt()
        parts = [root[:, None] * right[:rank], left[:, :rank] * root]
        near = parts[1] @ parts[0]
    else:
        parts, near = (
            _tucker2(weight, last.shape[1], first.shape[0]) if form == "tucker2" else _cp(weight, first.shape[0])
        )
    with torch.no_grad():
        for part, target in zip(parts, layers, strict=True):
            _weight(target).copy_(part.reshape(_weight(target).shape))
        if layer.bias is not None:
            layers[-1].bias.copy_(layer.bias)  # type: ignore[operator, arg-type]
    return float((near.reshape(weight.shape) - weight).norm() / weight.norm().clamp_min(torch.finfo().tiny))


def apply_factorization(model: nn.Module, edit: Edit, _example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Put the product's layers in the place of the layer that the edit names, in ``model``; their weights come later.

    Raises:
        CompressionError: the layer is not there, or is not one with these ranks.
    """
    name, form, ranks = edit["layer"], edit["form"], tuple(edit["ranks"])
    layer = dict(model.named_modules()).get(name)
    if layer is None or not replaceable(layer) or len(ranks) != len(largest_ranks(layer, form)) or min(ranks) < 1:
        raise CompressionError(
            f"structure: layer {name!r} cannot be factorized as {form} with ranks {list(ranks)}",
            hint="the network was changed since: run the step again",
        )
    model.set_submodule(name, product(layer, form, ranks))


def _one_axis(layer: _ConvNd, axis: int, rank: int, convolution: Any) -> nn.Module:
    """Return the depthwise convolution along one axis of a kernel, with that axis' stride, padding and dilation."""

    def only(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(value if index == axis else other for index, value in enumerate(values))

    padding = layer.padding if isinstance(layer.padding, str) else only(layer.padding, 0)
    return convolution(  # type: ignore[no-any-return]
        rank, rank, only(layer.kernel_size, 1), stride=only(layer.stride, 1), padding=padding,
        dilation=only(layer.dilation, 1), groups=rank, bias=False, padding_mode=layer.padding_mode,
    )  # fmt: skip


def _tucker2(weight: torch.Tensor, rank_out: int, rank_in: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    tensorly = _tensorly()
    (core, (out, into)), _ = tensorly.decomposition.partial_tucker(
        weight.numpy(), rank=[rank_out, rank_in], modes=[0, 1], init="svd"
    )
    near = np.einsum("or,rs...,is->oi...", out, core, into)
    return [_torch(into.T), _torch(core), _torch(out)], _torch(near)


def _cp(weight: torch.Tensor, rank: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    tensorly = _tensorly()
    with warnings.catch_warnings():
        # A rank above a mode's size is filled up with random numbers, seeded; it says so each time.
        warnings.filterwarnings("ignore", message="Trying to compute SVD")
        found = tensorly.decomposition.parafac(
            weight.numpy(), rank=rank, init="svd", random_state=0, n_iter_max=_CP_ITERATIONS, tol=1e-8
        )
    scale, (out, into, *axes) = found
    parts = [_torch(into.T), *(_torch(axis.T) for axis in axes), _torch(out * scale)]
    return parts, _torch(tensorly.cp_to_tensor(found))


def _tensorly() -> Any:
    try:
        import tensorly
        import tensorly.decomposition
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Tucker and CP decomposition need the package tensorly", hint="pip install 'edgeopt[factorize]'"
        ) from error
    return tensorly


def _torch(array: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _weight(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.weight.detach()
    return weight
