"""What ``method = "sparsify"`` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeopt.errors import RecipeError
from edgeopt.training import TrainSettings


@dataclass(frozen=True)
class SparsifySettings:
    """Unstructured pruning: which single weights become zero, and how training follows.

    ``sparsity`` is the share of zeros, of each layer (``scope = "local"``) or of all together (``"global"``);
    ``sparsities`` overrides it for layers by name, and without it only those are pruned. In their place ``threshold``
    zeroes every weight of a smaller magnitude, and ``pattern = "2:4"`` two of every four neighbours along the input
    channels, which TensorRT's sparse kernels skip. ``importance`` ranks weights: ``gradient`` by the first
    ``num_samples`` training samples, ``movement`` while ``finetune`` trains.

    With ``schedule = "gradual"`` the mask is tightened during ``finetune``, in ``num_updates`` steps that follow a
    cubic from ``initial_sparsity``, over the part ``ramp`` of the training; the rest of it mends.
    """

    method: Literal["sparsify"] = "sparsify"
    sparsity: float | None = None
    sparsities: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    pattern: Literal["any", "2:4"] = "any"
    scope: Literal["local", "global"] = "local"
    importance: Literal["l1", "random", "gradient", "movement"] = "l1"
    num_samples: int = 1024
    schedule: Literal["one_shot", "gradual"] = "one_shot"
    initial_sparsity: float = 0.0
    ramp: tuple[float, float] = (0.0, 0.7)
    num_updates: int = 30
    ignored_layers: tuple[str, ...] = ()
    seed: int = 0
    finetune: TrainSettings | None = None

    def __post_init__(self) -> None:
        """Refuse what asks for nothing, for two things at once or for what cannot be trained."""
        shares = (*(() if self.sparsity is None else (self.sparsity,)), *self.sparsities.values())
        asked = (bool(shares), self.threshold is not None, self.pattern != "any")
        if sum(asked) != 1:
            raise RecipeError(
                f"expected one of 'sparsity' (or 'sparsities'), 'threshold' and pattern = \"2:4\", got {sum(asked)}",
                hint="sparsity = 0.9",
            )
        for share in (*shares, self.initial_sparsity):
            if not 0 <= share < 1:
                raise RecipeError(f"a sparsity must be in [0, 1), got {share}")
        if self.threshold is not None and (self.threshold <= 0 or self.importance != "l1"):
            raise RecipeError("'threshold' is a magnitude above 0, and goes with importance = \"l1\"")
        if min(self.num_samples, self.num_updates) < 1:
            raise RecipeError("num_samples and num_updates must be at least 1")
        self._check_schedule(any(shares))

    def _check_schedule(self, has_shares: bool) -> None:
        begin, end = self.ramp
        if not 0 <= begin < end <= 1:
            raise RecipeError(f"'ramp' is the part of the training in which the mask tightens, got {list(self.ramp)}")
        if self.schedule == "one_shot" and self.importance == "movement":
            raise RecipeError(
                'importance = "movement" is measured while the mask tightens', hint='schedule = "gradual"'
            )
        if self.schedule == "gradual" and (self.finetune is None or not has_shares):
            raise RecipeError(
                'schedule = "gradual" needs a training and a sparsity to reach',
                hint="add 'sparsity' and [compress.finetune] with its epochs",
            )
