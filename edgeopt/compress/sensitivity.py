"""Sensitivity: each group is pruned alone at several ratios, and what the network then answers is compared.

The damage is the mean Kullback-Leibler divergence from the answers of the whole network, in nats: it needs no labels
and tells apart what top-1 answers cannot. How many of those stay the same, and how many are right, is reported beside.

A channel is taken out by putting zeros where it is used. That is what removing it does, except before a layer norm,
whose mean counts it, so that there the scan is an estimate.

Source: Li et al.: Pruning Filters for Efficient ConvNets, 2017, arXiv 1608.08710, section 3.2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from edgeopt.artifacts import canonical_json, digest_of
from edgeopt.compress.batches import Labelled
from edgeopt.compress.fit import logits_of
from edgeopt.compress.groups import Group, channel_rows
from edgeopt.compress.importance import Scores
from edgeopt.compress.weights import model_digest
from edgeopt.stage import report_progress

_BATCH = 64


@dataclass(frozen=True)
class ScanRow:
    """A group at a ratio: ``agreement`` and ``accuracy`` are shares of top-1 answers, the same as before and right.

    ``accuracy`` is ``None`` without labels; ``divergence`` is in nats.
    """

    layer: str
    ratio: float
    divergence: float
    agreement: float
    accuracy: float | None


@dataclass(frozen=True)
class Damage:
    """What a group's ratios cost: the divergence at each, from ratio 0 on, made to rise."""

    ratios: tuple[float, ...]
    divergences: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The most that was measured."""
        return self.divergences[-1]

    def ratio_at(self, limit: float) -> float:
        """Return the largest ratio that costs at most ``limit``, interpolated; the largest that was scanned at most."""
        points = list(zip(self.ratios, self.divergences, strict=True))
        for (low, less), (high, more) in pairwise(points):
            if more > limit:
                return low + (high - low) * (limit - less) / (more - less)
        return self.ratios[-1]


def scan(
    model: nn.Module, groups: Sequence[Group], scores: Scores, ratios: Sequence[float], samples: Labelled, folder: Path
) -> list[ScanRow]:
    """Measure what each ratio of each group costs, one at a time, and leave ``model`` as it was.

    What was measured is kept in ``folder`` until :func:`forget_scan`, so a scan that was killed goes on.

    Raises:
        CompressionError: the network has not one output of logits ``(N, classes)``.
    """
    kept = _Kept(folder / "scan.json", _fingerprint(model, groups, scores, ratios, samples))
    rows, total = kept.load(), len(groups) * len(ratios)
    whole = _answers(model, samples)
    tasks = [(group, score, ratio) for group, score in zip(groups, scores, strict=True) for ratio in ratios]
    for group, score, ratio in tasks[len(rows) :]:
        units = torch.argsort(score, stable=True)[: round(group.num_units * ratio)]
        with without(group, units):
            rows.append(_row(group.name, ratio, whole, _answers(model, samples), samples.labels))
        kept.save(rows)
        report_progress("sensitivity", len(rows), total, f"{group.name} at {ratio:.0%}")
    return rows


def forget_scan(folder: Path) -> None:
    """Delete what a scan kept."""
    (folder / "scan.json").unlink(missing_ok=True)


def damage_of(group: Group, rows: Sequence[ScanRow]) -> Damage:
    """Return what a scan found about one group; a ratio costs no less than a smaller one."""
    found = [row for row in rows if row.layer == group.name]
    rising = [0.0]
    for row in found:
        rising.append(max(rising[-1], row.divergence))
    return Damage((0.0, *(row.ratio for row in found)), tuple(rising))


@contextmanager
def without(group: Group, units: torch.Tensor) -> Iterator[None]:
    """Put zeros where some units of a group are used, inside the block."""
    gone = torch.isin(torch.arange(group.width), group.units[units].flatten())
    users = [member for member in group.members if member.side == "uses"]
    before = [member.layer.weight.detach().clone() for member in users]  # type: ignore[operator]
    with torch.no_grad():
        for member in users:
            _zero(member.layer, member.own[gone[member.channels]])
    try:
        yield
    finally:
        with torch.no_grad():
            for member, weight in zip(users, before, strict=True):
                member.layer.weight.copy_(weight)  # type: ignore[operator]


def _zero(layer: nn.Module, channels: torch.Tensor) -> None:
    """Put zeros where a layer uses these channels; the mask is found through the same view as weights are."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    places = channel_rows(layer, torch.arange(weight.numel()).reshape(weight.shape), "uses")[channels]
    mask = torch.ones(weight.numel(), dtype=weight.dtype).index_fill_(0, places.flatten(), 0.0)
    weight.mul_(mask.reshape(weight.shape))


def _answers(model: nn.Module, samples: Labelled) -> torch.Tensor:
    """Return the logits ``(N, classes)``."""
    with torch.no_grad():
        parts = torch.split(torch.arange(len(samples)), _BATCH)
        return torch.cat([logits_of(model, samples.take(part).inputs) for part in parts])


def _row(name: str, ratio: float, whole: torch.Tensor, pruned: torch.Tensor, labels: torch.Tensor | None) -> ScanRow:
    now, before = (functional.log_softmax(logits.double(), dim=1) for logits in (pruned, whole))
    divergence = functional.kl_div(now, before, reduction="batchmean", log_target=True)
    answers = pruned.argmax(dim=1)
    agreement = (answers == whole.argmax(dim=1)).double().mean()
    accuracy = None if labels is None else float((answers == labels).double().mean())
    return ScanRow(name, ratio, max(0.0, float(divergence)), float(agreement), accuracy)


@dataclass(frozen=True)
class _Kept:
    """Rows on disk; ``fingerprint`` stands for everything that decides them."""

    path: Path
    fingerprint: str

    def load(self) -> list[ScanRow]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or cut short by hand: measure again
            return []
        return [ScanRow(**row) for row in content["rows"]] if content["fingerprint"] == self.fingerprint else []

    def save(self, rows: Sequence[ScanRow]) -> None:
        temporary = self.path.with_name(self.path.name + ".tmp")
        text = canonical_json({"fingerprint": self.fingerprint, "rows": [asdict(row) for row in rows]})
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path)


def _fingerprint(
    model: nn.Module, groups: Sequence[Group], scores: Scores, ratios: Sequence[float], samples: Labelled
) -> str:
    asked = canonical_json([[group.name for group in groups], [score.tolist() for score in scores], list(ratios)])
    shown = [repr(tensor.double().sum().item()) for tensor in samples.inputs]
    return digest_of([torch.__version__, model_digest(model), asked, str(len(samples)), *shown])
