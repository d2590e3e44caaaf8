"""What ``method = "prune"`` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Literal

from edgeopt.errors import RecipeError
from edgeopt.training import TrainSettings

Importance = Literal["l1", "l2", "outgoing_l1", "bn_scale", "taylor", "hessian", "fpgm", "lamp", "random"]

DEFAULT_RATIO = 0.5


@dataclass(frozen=True)
class PruneBudget:
    """What the pruned network may cost at most; the ratio is searched for. Exactly one is given.

    A number below 1 is a share of what the network costs before the step, any other is absolute. ``model_bytes`` are
    those of its weights in int8. ``latency`` is a share of the unpruned network's, both measured in int8 in the
    runtime of the step's ``target``.
    """

    num_macs: float | None = None
    model_bytes: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        """Refuse no budget, two of them, and what no network can keep."""
        given = {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}
        if len(given) != 1:
            raise RecipeError(
                f"a budget is one of num_macs, model_bytes and latency, got {', '.join(given) or 'none'}",
                hint="budget = { num_macs = 0.33 } keeps a third of the multiply-accumulates",
            )
        if self.value <= 0:
            raise RecipeError(f"budget: {self.kind} must be above 0, got {self.value}")
        if self.latency is not None and self.latency >= 1:
            raise RecipeError(f"budget: latency is a share of the unpruned network's, in (0, 1), got {self.latency}")

    @property
    def kind(self) -> str:
        """What is limited."""
        return next(item.name for item in fields(self) if getattr(self, item.name) is not None)

    @property
    def value(self) -> float:
        """The limit, as it was given."""
        return float(getattr(self, self.kind))


@dataclass(frozen=True)
class PruneSettings:
    """Structured pruning: which share of the channels goes, and how they are ranked.

    ``pruning_ratio`` is 0.5 unless it or a ``budget`` is given. ``pruning_ratios`` overrides it for layers by name, and
    ``head_ratio`` is the share of the attention heads. ``scope`` ranks the channels of each group of layers that lose
    them together (``local``), those of all (``global``), or finds each group's ratio by how much the answers suffer
    (``sensitivity``: each group is pruned alone at each of ``scan_ratios``). ``round_to`` left out takes the target's
    fact. With ``iterations``, the ratio rises in that many steps, with a training as ``finetune`` says between them.

    ``num_samples`` of the training samples are looked at by ``taylor``, ``hessian`` and the scan, ``seed`` is that of
    ``random``, and ``target`` is whose runtime a latency is measured in.
    """

    method: Literal["prune"] = "prune"
    pruning_ratio: float | None = None
    pruning_ratios: Mapping[str, float] = field(default_factory=dict)
    head_ratio: float = 0.0
    budget: PruneBudget | None = None
    importance: Importance = "l2"
    scope: Literal["local", "global", "sensitivity"] = "local"
    scan_ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    round_to: int | None = None
    ignored_layers: tuple[str, ...] = ()
    iterations: int = 1
    finetune: TrainSettings | None = None
    num_samples: int = 256
    seed: int = 0
    threads: int = 2
    target: str | None = None

    def __post_init__(self) -> None:
        """Refuse ratios that leave nothing or take nothing, and settings that say nothing together."""
        for ratio in (self.ratio, self.head_ratio, *self.pruning_ratios.values()):
            if not 0 <= ratio < 1:
                raise RecipeError(f"a pruning ratio must be in [0, 1), got {ratio}")
        rising = (0.0, *self.scan_ratios, 1.0)
        if not self.scan_ratios or any(low >= high for low, high in pairwise(rising)):
            raise RecipeError(f"'scan_ratios' must rise within (0, 1), got {list(self.scan_ratios)}")
        for name in ("round_to", "iterations", "num_samples", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RecipeError(f"'{name}' must be at least 1, got {value}")
        if self.budget is not None and self.pruning_ratio is not None:
            raise RecipeError("'budget' finds the ratio that 'pruning_ratio' gives", hint="leave one of them out")
        self._check_companions()

    def _check_companions(self) -> None:
        """Refuse a setting without the one that it goes with."""
        if self.iterations > 1 and self.finetune is None:
            raise RecipeError(
                f"'iterations' is {self.iterations}, and nothing says how to train between them",
                hint="add [compress.finetune] with epochs and learning_rate",
            )
        if self.iterations == 1 and self.finetune is not None:
            raise RecipeError(
                "[compress.finetune] is what happens between iterations, and there is only one",
                hint='set iterations = 3, or train afterwards with a step of method = "finetune"',
            )
        if self.finetune is not None and self.finetune.devices > 1:
            raise RecipeError(
                f"[compress.finetune] devices is {self.finetune.devices}: between iterations one process trains",
                hint='train in several processes afterwards, with a step of method = "finetune"',
            )
        if (self.budget is not None and self.budget.latency is not None) != (self.target is not None):
            raise RecipeError(
                "a latency is measured in a target's runtime: 'target' and budget.latency go together",
                hint='budget = { latency = 0.5 } and target = "arm64"',
            )

    @property
    def ratio(self) -> float:
        """The share of the channels that goes where no budget finds it."""
        return DEFAULT_RATIO if self.pruning_ratio is None else self.pruning_ratio
