"""Unstructured pruning: single weights become zero, and stay zero in all later training.

Nothing gets smaller by it but the packed bundle, and nothing faster but what skips zeros: TensorRT's kernels, where two
of every four neighbours are zero.

Source: Han et al.: Learning both Weights and Connections for Efficient Neural Networks, 2015, arXiv 1506.02626
(magnitude, threshold); Lee et al.: SNIP, 2019, arXiv 1810.02340, equation 6 (gradient); Sanh, Wolf, Rush: Movement
Pruning, 2020, arXiv 2005.07683, section 3 (movement); Zhu, Gupta: To Prune, or Not to Prune, 2017, arXiv 1710.01878
(gradual); Mishra et al.: Accelerating Sparse Deep Neural Networks, 2021, arXiv 2104.08378 (2:4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from edgeopt.artifacts import canonical_json
from edgeopt.compress.batches import load_labelled
from edgeopt.compress.class_loss import cross_entropy
from edgeopt.compress.constraints import Sparse, holder_of, refuse_loss
from edgeopt.compress.determinism import deterministic
from edgeopt.compress.fit import StepHook, logits_of
from edgeopt.compress.layers import layers_in, prunable_layers
from edgeopt.compress.masks import Tensors, cubic, global_masks, local_masks, two_of_four
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.compress.strided import strided_before
from edgeopt.compress.structure import Constraint
from edgeopt.compress.train import TrainReport, hard_loss, train_network
from edgeopt.compress.weights import refuse_not_finite
from edgeopt.errors import CompressionError
from edgeopt.samples import Dataset
from edgeopt.steps import SparsifySettings
from edgeopt.training import TrainSettings

_BATCH_SIZE = 128  # of the samples that gradients are taken from


@dataclass(frozen=True)
class SparseLayer:
    """How many of a layer's weights are zero."""

    name: str
    num_weights: int
    num_zeros: int


@dataclass(frozen=True)
class SparsifyReport:
    """The layers that have a mask, those that ``2:4`` does not fit, and how the training went."""

    layers: tuple[SparseLayer, ...]
    left_dense: tuple[str, ...]
    training: TrainReport | None

    @property
    def summary(self) -> str:
        """The share of zeros."""
        zeros, weights = (sum(getattr(layer, key) for layer in self.layers) for key in ("num_zeros", "num_weights"))
        text = f"{zeros / weights:.1%} zeros in {len(self.layers)} layers"
        return text if self.training is None else f"{text}; {self.training.summary}"


def sparsify(context: StepContext, settings: SparsifySettings, folder: Path) -> SparsifyReport:
    """Zero weights of ``context.source``, train what is left if asked, and hand the network on.

    Raises:
        CompressionError: a layer is not there, none is left, a weight is constrained to other values, or a layer would
            lose all its weights.
        DataError: samples are needed and missing or not labelled.
    """
    threads = (settings.finetune or TrainSettings()).threads
    with deterministic(settings.seed, threads):
        model = context.build(context.source)
        refuse_not_finite(model, "before weights are zeroed")
        weights = _chosen(model, settings)
        refuse_loss(context.structure, weights, "sparsify", keeps=("sparse",))
        if settings.schedule == "gradual":
            training: TrainReport | None = _train_gradually(model, weights, context, settings, folder)
        else:
            training = _train_masked(model, weights, context, settings, folder)
    layers = tuple(_counted(name, model.get_parameter(name)) for name in weights)
    fitting = {layer.name for layer in layers}
    left = [name for name in prunable_layers(model) if settings.pattern == "2:4" and name not in fitting]
    return SparsifyReport(layers, tuple(left), training)


def _train_masked(
    model: nn.Module, weights: Tensors, context: StepContext, settings: SparsifySettings, folder: Path
) -> TrainReport | None:
    """Zero weights at once, and train the others."""
    for name, mask in _masks(_scores(model, weights, context, settings), weights, settings).items():
        weights[name][~mask] = 0
    structure = context.structure.constrained({name: _constraint(settings) for name in weights})
    sparse = hand_on(model, structure, folder)
    if settings.finetune is None:
        return None
    return train_network(model, hard_loss, "", replace(context, source=sparse), settings.finetune, folder, "sparsify")


def _train_gradually(
    model: nn.Module, weights: Tensors, context: StepContext, settings: SparsifySettings, folder: Path
) -> TrainReport:
    """Tighten masks while the network trains."""
    assert settings.finetune is not None
    structure = context.structure.constrained({name: _constraint(settings) for name in weights})
    scored = {name: {"kind": "sparse", "scores": settings.importance == "movement"} for name in weights}
    source = hand_on(model, structure.constrained(scored), folder)
    tightening = Tightening(model, _scores(model, weights, context, settings), settings)
    hook = StepHook(tightening.on_step, settings.ramp[1])
    held = canonical_json(asdict(settings))
    within = replace(context, source=source)
    report = train_network(model, hard_loss, held, within, settings.finetune, folder, "sparsify", hook)
    hand_on(model, structure, folder)
    return report


class Tightening:
    """The masks of a training, tightened in stages; they lie in the network, and what is zero stays zero."""

    def __init__(self, model: nn.Module, scores: Tensors, settings: SparsifySettings) -> None:
        self.model = model
        self.scores = scores
        self.settings = settings
        self.stage = -1

    def on_step(self, progress: float) -> None:
        """Note how weights move, and set the masks when the next stage of the ramp is reached."""
        if self.settings.importance == "movement":
            self._note_movement()
        begin, end = self.settings.ramp
        stage = int(self.settings.num_updates * min(1.0, (progress - begin) / (end - begin)))
        if progress >= begin and stage != self.stage:
            self.stage = stage
            self._tighten(stage / self.settings.num_updates)

    def _tighten(self, share: float) -> None:
        scores = {}
        for name in self.scores:
            holder, _ = self._held(name)
            scores[name] = self._importance(name).masked_fill(~holder.mask, -torch.inf)
        for name, mask in _asked(scores, self.settings, share).items():
            self._held(name)[0].mask.logical_and_(mask)  # where more is zero already than is asked, it stays

    def _importance(self, name: str) -> torch.Tensor:
        """Return the scores of one weight: fixed ones, or those of the weights as they are now."""
        holder, weight = self._held(name)
        if self.settings.importance == "movement":
            return holder.get_buffer("scores")
        return weight.detach().abs() if self.settings.importance == "l1" else self.scores[name]

    def _note_movement(self) -> None:
        """Add up how far each weight is driven away from zero: ``-w dL/dw``."""
        for name in self.scores:
            holder, weight = self._held(name)
            if weight.grad is None:  # frozen, or not used by this step
                continue
            holder.get_buffer("scores").sub_(weight.detach() * weight.grad)

    def _held(self, name: str) -> tuple[Sparse, nn.Parameter]:
        holder, weight = holder_of(self.model, name)
        assert isinstance(holder, Sparse)
        return holder, weight


def _masks(scores: Tensors, weights: Tensors, settings: SparsifySettings) -> dict[str, torch.Tensor]:
    """Return what is kept of each weight; what is zero already stays zero."""
    if settings.threshold is not None:
        return {name: weight.abs() >= settings.threshold for name, weight in weights.items()}
    known = {name: score.masked_fill(weights[name] == 0, -torch.inf) for name, score in scores.items()}
    if settings.pattern == "2:4":
        return {name: two_of_four(score) for name, score in known.items()}
    return _asked(known, settings, 1.0)


def _asked(scores: Tensors, settings: SparsifySettings, share: float) -> dict[str, torch.Tensor]:
    """Return masks for the sparsities that the settings ask for, after a share of the ramp."""
    own = {
        weight: cubic(min(settings.initial_sparsity, sparsity), sparsity, share)
        for name, sparsity in settings.sparsities.items()
        for weight in scores
        if weight.startswith(name + ".")
    }
    rest = {name: score for name, score in scores.items() if name not in own}
    asked = settings.sparsity or 0.0
    common = cubic(min(settings.initial_sparsity, asked), asked, share)
    whole = global_masks(rest, common) if settings.scope == "global" else local_masks(rest, dict.fromkeys(rest, common))
    return {**whole, **local_masks({name: scores[name] for name in own}, own)}


def _scores(
    model: nn.Module, weights: Tensors, context: StepContext, settings: SparsifySettings
) -> dict[str, torch.Tensor]:
    """Return how much each weight matters before any training, the same shapes as the weights."""
    if settings.importance == "random":
        generator = torch.Generator().manual_seed(settings.seed)
        return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
    if settings.importance == "gradient":
        return _sensitivities(model, weights, context.open_split("train"), settings.num_samples)
    return {name: weight.abs() for name, weight in weights.items()}


def _sensitivities(model: nn.Module, weights: Tensors, samples: Dataset, num_samples: int) -> dict[str, torch.Tensor]:
    """Return ``|w dL/dw|`` of each weight for the mean loss over the first samples."""
    data = load_labelled(samples, "train")
    parameters = [model.get_parameter(name) for name in weights]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    model.eval()
    with strided_before(model), _taking_gradients(parameters):
        for index in torch.split(torch.arange(min(num_samples, len(data))), _BATCH_SIZE):
            batch = data.take(index)
            assert batch.labels is not None
            loss = cross_entropy(logits_of(model, batch.inputs), batch.labels, "sum")
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            for total, gradient in zip(gradients, found, strict=True):
                total += gradient
    return {name: (weights[name] * total).abs() for name, total in zip(weights, gradients, strict=True)}


@contextmanager
def _taking_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let frozen parameters have gradients inside the block."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _chosen(model: nn.Module, settings: SparsifySettings) -> dict[str, torch.Tensor]:
    """Return the weights that get a mask, by name, in the network's order."""
    ignored = {layer for name in settings.ignored_layers for layer in layers_in(model, name)}
    named = {layer for name in settings.sparsities for layer in layers_in(model, name)}
    chosen = named if settings.sparsities and settings.sparsity is None else set(prunable_layers(model))
    layers = {name: layer for name, layer in prunable_layers(model).items() if name in chosen - ignored}
    if settings.pattern == "2:4":
        layers = {name: layer for name, layer in layers.items() if _fits_pattern(layer)}
    if not layers:
        raise CompressionError("no layer is left whose weights could be zeroed", hint="ignore fewer layers")
    return {f"{name}.weight": model.get_parameter(f"{name}.weight").data for name in layers}


def _fits_pattern(layer: nn.Module) -> bool:
    """Return whether the input channels come in fours; TensorRT has no sparse transposed convolution."""
    return not isinstance(layer, _ConvTransposeNd) and layer.get_parameter("weight").shape[1] % 4 == 0


def _constraint(settings: SparsifySettings) -> Constraint:
    return {"kind": "sparse"} if settings.pattern == "any" else {"kind": "sparse", "pattern": settings.pattern}


def _counted(name: str, weight: torch.Tensor) -> SparseLayer:
    return SparseLayer(name.removesuffix(".weight"), weight.numel(), weight.numel() - int(weight.count_nonzero()))
