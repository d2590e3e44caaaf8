"""Go on training a network with the labels of its samples, under the constraints that earlier steps left."""

from __future__ import annotations

from pathlib import Path

from edgeopt.compress.determinism import deterministic
from edgeopt.compress.step import StepContext
from edgeopt.compress.train import TrainReport, hard_loss, train_network
from edgeopt.steps import FinetuneSettings


def finetune(context: StepContext, settings: FinetuneSettings, folder: Path) -> TrainReport:
    """Train the source on, see :func:`edgeopt.compress.train.train_stage`."""
    with deterministic(settings.seed, settings.threads):
        model = context.build(context.source)
        return train_network(model, hard_loss, "", context, settings, folder, "finetune")
