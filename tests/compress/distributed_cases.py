"""Trainings that are done in one process and in several: ``torchrun ... distributed_cases.py FOLDER`` does them all."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from small_nets import noisy_patterns, rebuilding, step_context
from torch import nn
from torch.distributed.tensor import DTensor

from edgeopt.artifacts import TorchModel
from edgeopt.compress.determinism import deterministic
from edgeopt.compress.finetune import finetune
from edgeopt.compress.parallel import make_fabric, sharded_copy
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.compress.structure import Structure
from edgeopt.compress.train import train
from edgeopt.errors import CompressionError
from edgeopt.steps import FinetuneSettings
from edgeopt.training import TrainSettings

SETTINGS = TrainSettings(epochs=3, batch_size=50, learning_rate=1e-2, threads=2, max_shift=1, validation_share=0.2)


def linear() -> nn.Module:
    """Return a network without batch norm, which every strategy can spread."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12), nn.Linear(12, 10))


def normed() -> nn.Module:
    """Return a network with batch norm, without the biases before it: they get no gradient but rounding noise."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(128, 16, bias=False),
        nn.BatchNorm1d(16, momentum=None, affine=False), nn.Linear(16, 10),
    )  # fmt: skip


class Branching(nn.Module):
    """Uses one of two layers in each step, so that each process may use another one."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.below = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        flat = image.flatten(1)
        return self.above(flat) if flat.sum() > 0 else self.below(flat)


class Diverging(nn.Module):
    """Answers NaN from its tenth step on, in the last process only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.steps = nn.Linear(64, 10), 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        is_last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        answer: torch.Tensor = self.layer(image.flatten(1))
        return answer * math.nan if self.steps > 9 and is_last else answer


CASES: dict[str, tuple[Callable[[], nn.Module], TrainSettings]] = {
    "ddp": (linear, replace(SETTINGS, optimizer="sgd", nesterov=True, max_gradient_norm=0.5)),
    "batch_norm": (normed, replace(SETTINGS, ema_decay=0.9, schedule="one_cycle", accumulate=2, batch_size=100)),
    "fsdp": (linear, replace(SETTINGS, strategy="fsdp", ema_decay=0.9, max_gradient_norm=0.5, warmup_epochs=1)),
    "fsdp_batch_norm": (normed, replace(SETTINGS, strategy="fsdp", accumulate=2)),
    "tensor_parallel": (linear, replace(SETTINGS, strategy="tensor_parallel", max_gradient_norm=0.5)),
}


def context_of(make: Callable[[], nn.Module], source: TorchModel | None = None) -> StepContext:
    return step_context(rebuilding(make, 1, 1, 8, 8), 1, 1, 8, 8, source=source, data=noisy_patterns())


def weights_after(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Train a case and return its weights."""
    make, settings = CASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    train(context_of(make), settings, folder)
    return rebuilding(make, 1, 1, 8, 8)(TorchModel(None, folder / "weights.safetensors")).state_dict()


def refusal(make: Callable[[], nn.Module], settings: TrainSettings, folder: Path) -> str:
    """Return what a training is refused with."""
    folder.mkdir()
    try:
        train(context_of(make), settings, folder)
    except CompressionError as error:
        return str(error)
    return "nothing"


def local_share(settings: TrainSettings) -> float:
    """Return which share of a network's parameters this process holds."""
    model = linear()
    fabric = make_fabric(settings)
    spread = sharded_copy(model, settings, False)
    fabric.setup_module(spread)
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in spread.parameters())
    return held / sum(parameter.numel() for parameter in model.parameters())


def sparse_source(folder: Path) -> TorchModel:
    """Write a network of whose first weight every other value is zero and stays so."""
    folder.mkdir()
    with deterministic(0, 1):
        model = linear()
    with torch.no_grad():
        model[1].weight[:, ::2] = 0
    return hand_on(model, Structure(constraints={"1.weight": {"kind": "sparse"}}), folder)


def main(folder: Path) -> None:
    """Do every case in this process of the group; each process writes to a folder of its own."""
    torch.distributed.init_process_group("gloo")
    own = folder / str(torch.distributed.get_rank())
    for name in CASES:
        weights_after(name, own / name)
    found: dict[str, object] = {
        "share": {name: local_share(replace(SETTINGS, strategy=name)) for name in ("fsdp", "tensor_parallel")},
        "nan": refusal(Diverging, replace(SETTINGS, max_shift=0), own / "nan"),
        "kept": [path.name for path in (own / "nan").iterdir()],
    }
    (own / "branching").mkdir()
    found["branching"] = train(context_of(Branching), replace(SETTINGS, batch_size=8), own / "branching").losses
    source = sparse_source(own / "sparse")
    (own / "finetuned").mkdir()
    finetune(context_of(linear, source), FinetuneSettings(epochs=2, threads=1), own / "finetuned")
    try:
        fsdp = FinetuneSettings(epochs=1, strategy="fsdp")
        finetune(context_of(linear, source), fsdp, own / "refused")
    except CompressionError as error:
        found["constrained"] = str(error)
    (own / "found.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
