"""What a student learns from inside its teacher: a layer's values, where they are large, how samples lie to another.

Source: Romero et al.: FitNets: Hints for Thin Deep Nets, 2015, arXiv 1412.6550 (hint); Zagoruyko, Komodakis: Paying
More Attention to Attention, 2017, arXiv 1612.03928 (attention); Park et al.: Relational Knowledge Distillation, 2019,
arXiv 1904.05068 (relational).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeopt.compress.layers import run_named
from edgeopt.errors import CompressionError, did_you_mean
from edgeopt.steps.distill import FeatureSettings

# The paper's weights of its two parts are 1 : 2.
_ANGLE_WEIGHT = 2.0


class FeatureLoss:
    """The loss of pairs of layers, and the layers ``adapters`` that must be trained along for it.

    Raises:
        CompressionError: a layer is not there, or gives no tensor that could be compared.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Sequence[FeatureSettings],
        example_inputs: tuple[torch.Tensor, ...],
    ) -> None:
        self._pairs = pairs
        names = [[pair.student for pair in pairs], [pair.teacher or pair.student for pair in pairs]]
        self._layers = [
            [_layer(model, name, role) for name in wanted]
            for model, wanted, role in zip((student, teacher), names, ("student", "teacher"), strict=True)
        ]
        with self.watching(), torch.no_grad():
            for model in (student, teacher):
                run_named(model, example_inputs)
            self.adapters = nn.ModuleList(map(self._adapter, range(len(pairs))))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the outputs of the layers of the latest run inside the block."""
        self._seen: list[list[torch.Tensor | None]] = [[None] * len(self._pairs) for _ in self._layers]

        def keep(side: int, index: int):  # type: ignore[no-untyped-def]
            def hook(_layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
                self._seen[side][index] = output

            return hook

        hooks = [
            layer.register_forward_hook(keep(side, index))
            for side, layers in enumerate(self._layers)
            for index, layer in enumerate(layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __call__(self) -> torch.Tensor:
        """Return the weighted sum over the pairs, of what student and teacher last computed."""
        losses = {"hint": self._hint, "attention": self._attention, "relational": self._relational}
        total = [pair.weight * losses[pair.loss](index) for index, pair in enumerate(self._pairs)]
        return torch.stack(total).sum()

    def _outputs(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what both layers gave, channels second, at the smaller of both resolutions."""
        student, teacher = (
            _channels_second(layers[index], seen[index]) for layers, seen in zip(self._layers, self._seen, strict=True)
        )
        if student.dim() != teacher.dim():
            pair = self._pairs[index]
            raise CompressionError(
                f"the student's layer {pair.student!r} gives {student.dim()} dimensions, the teacher's "
                f"{pair.teacher or pair.student!r} {teacher.dim()}"
            )
        common = tuple(map(min, zip(student.shape[2:], teacher.shape[2:], strict=True)))
        return _pooled(student, common), _pooled(teacher, common)

    def _adapter(self, index: int) -> nn.Module:
        """Return the layer that takes a hint's width from the student's to the teacher's."""
        student, teacher = self._outputs(index)
        if self._pairs[index].loss != "hint" or student.shape[1] == teacher.shape[1]:
            return nn.Identity()
        return nn.Conv1d(student.shape[1], teacher.shape[1], 1)

    def _hint(self, index: int) -> torch.Tensor:
        student, teacher = (
            output.flatten(2) if output.dim() > 2 else output[..., None] for output in self._outputs(index)
        )
        return functional.mse_loss(self.adapters[index](student), teacher)

    def _attention(self, index: int) -> torch.Tensor:
        maps = [functional.normalize(output.square().mean(dim=1).flatten(1), dim=1) for output in self._outputs(index)]
        return (maps[0] - maps[1]).square().sum(dim=1).mean()

    def _relational(self, index: int) -> torch.Tensor:
        student, teacher = (output.flatten(1) for output in self._outputs(index))
        distances = functional.smooth_l1_loss(_distances(student), _distances(teacher))
        return distances + _ANGLE_WEIGHT * functional.smooth_l1_loss(_angles(student), _angles(teacher))


def _layer(model: nn.Module, name: str, role: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in layers:
        raise CompressionError(f"the {role} has no layer {name!r}", hint=did_you_mean(name, list(layers)))
    return layers[name]


def _channels_second(layer: nn.Module, output: object) -> torch.Tensor:
    """Return an output ``(N, C, ...)``; linear layers and what follows them have sequences ``(N, T, C)``."""
    if not isinstance(output, torch.Tensor) or output.dim() < 2:
        raise CompressionError(
            f"a layer of type {type(layer).__name__} gives no tensor (N, C, ...) that could be compared"
        )
    is_sequence = output.dim() == 3 and not isinstance(layer, (nn.Conv1d, nn.BatchNorm1d))
    return output.transpose(1, 2) if is_sequence else output


def _pooled(output: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if tuple(output.shape[2:]) == size:
        return output
    pools: list[Any] = [functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d]
    pooled: torch.Tensor = pools[len(size) - 1](output, size)
    return pooled


def _distances(values: torch.Tensor) -> torch.Tensor:
    """Return the distances ``(N, N)`` between samples, in units of their mean."""
    # Not cdist: its gradient at distance zero is NaN.
    squared = (values[:, None] - values).square().sum(dim=2)
    distances = squared.clamp_min(1e-12).sqrt() * (squared > 0)
    return distances / distances[squared > 0].mean().clamp_min(1e-12) if bool((squared > 0).any()) else distances


def _angles(values: torch.Tensor) -> torch.Tensor:
    """Return the cosine of the angle ``(N, N, N)`` at each sample between each two others."""
    directions = functional.normalize(values[:, None] - values, dim=2)
    return directions @ directions.transpose(1, 2)
