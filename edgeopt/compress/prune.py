"""Structured pruning: the channels that matter least are removed, and the network is really smaller afterwards.

Which layers lose channels together is for :mod:`edgeopt.compress.groups` to say, what matters for
:mod:`edgeopt.compress.importance`, how many go from where for :mod:`edgeopt.compress.allotment`, and which ratio keeps
a budget for :mod:`edgeopt.compress.prune_budget`.

Source: Li et al.: Pruning Filters for Efficient ConvNets, 2017, arXiv 1608.08710; Han et al.: Learning both Weights and
Connections for Efficient Neural Networks, 2015, arXiv 1506.02626, section 3.3 (pruning in turns with training).
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from edgeopt.artifacts import canonical_json, digest_of
from edgeopt.atomic import write_text
from edgeopt.compress.allotment import Population
from edgeopt.compress.batches import Labelled, load_buckets
from edgeopt.compress.channels import Removal, removal_edit
from edgeopt.compress.determinism import deterministic
from edgeopt.compress.gradients import chosen_samples
from edgeopt.compress.groups import Group
from edgeopt.compress.heads import head_removal, num_heads
from edgeopt.compress.importance import Evidence, score
from edgeopt.compress.layers import num_channels, prunable_layers, quietly, run_named, traceable
from edgeopt.compress.prunable import Prunable, prunable
from edgeopt.compress.prune_budget import BudgetReport, cost_function, limit_of, smallest_ratio
from edgeopt.compress.rebuild import apply_structure
from edgeopt.compress.sensitivity import ScanRow, damage_of, forget_scan, scan, without
from edgeopt.compress.step import StepContext, hand_on, result_in
from edgeopt.compress.structure import Edit, Structure
from edgeopt.compress.train import hard_loss, train_network
from edgeopt.compress.weights import model_digest
from edgeopt.errors import CompressionError, DataError
from edgeopt.steps.prune import PruneSettings

# Of the largest answer: another order of float32 sums is a thousand times less.
_SAME_ANSWER = 1e-3


@dataclass(frozen=True)
class LayerChange:
    """How many output channels or features a layer had and has; of an attention, how many heads."""

    name: str
    channels_before: int
    channels_after: int


@dataclass(frozen=True)
class IterationReport:
    """The ratio that one iteration pruned to, and its score on validation samples after the training that followed."""

    pruning_ratio: float
    validation_score: float | None = None


@dataclass(frozen=True)
class PruneReport:
    """What pruning left: widths, heads, the ratio of each iteration, the budget, and what the last scan measured."""

    layers: tuple[LayerChange, ...]
    heads: tuple[LayerChange, ...]
    iterations: tuple[IterationReport, ...]
    budget: BudgetReport | None
    scan: tuple[ScanRow, ...]

    @property
    def summary(self) -> str:
        """The ratio, where a budget found it; the sizes say the rest."""
        if self.budget is None:
            return ""
        found, budget = self.iterations[-1].pruning_ratio, self.budget
        return f"ratio {found:.3f} for {budget.kind} {budget.before:,.4g} -> {budget.after:,.4g}"


def prune(context: StepContext, settings: PruneSettings, folder: Path) -> PruneReport:
    """Remove channels and heads from ``context.source`` and write what is left to ``folder``.

    The layers that make the network's outputs are never pruned. Before the files are handed on, the network is built
    again from them, must answer bit for bit like the one that was pruned, and must go through ``torch.export``. A
    network that was pruned before can be pruned again: the removals add up. Channels that remain are a multiple of
    ``context.round_to``, unless ``settings.round_to`` says otherwise. A call that was killed goes on from its last
    iteration, epoch and row of the scan when it is made again with the same arguments.

    Raises:
        CompressionError: a layer that is not there, nothing to prune, weights that are not finite, a budget out of
            reach, an importance that does not fit, or a network whose code does not follow its layers when they shrink.
        DataError: samples are needed, and are missing or have no labels.
    """
    with torch.random.fork_rng(devices=[]):
        first = _prunable(context, settings)
        current, iterations = context, []
        for number in range(1, settings.iterations):
            report, current = _prune_and_train(context, current, first, settings, number, folder)
            iterations.append(report)
        last = _Iteration(current, first, settings, 1.0, folder)
        ratio, artifact_model = last.prune_into(folder)
        for number in range(1, settings.iterations):
            shutil.rmtree(_iteration_folder(folder, number))
        forget_scan(folder)
        return PruneReport(
            _changes(_widths(first.model), _widths(artifact_model)),
            _changes(_heads(first, first.model), _heads(first, artifact_model)),
            (*iterations, IterationReport(ratio)),
            last.budget_report(artifact_model),
            tuple(last.rows),
        )


def _prunable(context: StepContext, settings: PruneSettings) -> Prunable:
    model = context.build(context.source).eval()
    return prunable(model, context.structure, settings, context.example_inputs)


def _prune_and_train(
    context: StepContext, current: StepContext, first: Prunable, settings: PruneSettings, number: int, folder: Path
) -> tuple[IterationReport, StepContext]:
    """Do one iteration that is not the last, or find it done; return its report and what the next one starts from."""
    assert settings.finetune is not None
    place = _iteration_folder(folder, number)
    done, following = place / "iteration.json", replace(context, source=result_in(place))
    fingerprint = digest_of([model_digest(first.model), canonical_json(asdict(settings))])
    if done.is_file() and (content := json.loads(done.read_text(encoding="utf-8")))["fingerprint"] == fingerprint:
        return IterationReport(**content["report"]), following
    pruned_in = place / "pruned"
    pruned_in.mkdir(parents=True, exist_ok=True)
    ratio, _ = _Iteration(current, first, settings, number / settings.iterations, place).prune_into(pruned_in)
    pruned = replace(context, source=result_in(pruned_in))
    with deterministic(settings.finetune.seed, settings.finetune.threads):
        model = pruned.build(pruned.source)
        description = f"iteration {number} of {settings.iterations}"
        trained = train_network(model, hard_loss, "", pruned, settings.finetune, place, description)
    score = trained.validation_scores[trained.best_epoch - 1] if trained.validation_scores else None
    report = IterationReport(ratio, score)
    write_text(done, canonical_json({"fingerprint": fingerprint, "report": asdict(report)}))
    return report, following


def _iteration_folder(folder: Path, number: int) -> Path:
    return folder / f"iteration-{number}"


class _Iteration:
    """One pruning of a network, ``share`` of the way from what the step began with to what it is to reach."""

    def __init__(
        self, context: StepContext, first: Prunable, settings: PruneSettings, share: float, folder: Path
    ) -> None:
        self.context, self.settings, self.share, self.folder = context, settings, share, folder
        self.first = first
        self.now = _prunable(context, settings)
        self.rows: list[ScanRow] = []
        self.cost = cost_function(context, settings, first.model) if settings.budget else None
        self.channels, self.heads = self._populations()

    def prune_into(self, folder: Path) -> tuple[float, nn.Module]:
        """Prune to the ratio that is asked for or found, hand the network on, and return both."""
        ratio = self.settings.ratio * self.share if self.cost is None else self._ratio_for_budget()
        edits = self._edits(ratio)
        asked = (ratio, self.settings.head_ratio, *self.settings.pruning_ratios.values())
        if not edits and self.settings.budget is None and max(asked) > 0:
            raise CompressionError(
                f"nothing was pruned: no group of layers can lose channels and keep a multiple of {self._round_to}",
                hint="lower round_to, raise pruning_ratio or ignore fewer layers",
            )
        model = self._edited(edits)
        self._refuse_other_heads(edits)
        structure = self.now.structure if edits else self.context.structure
        for edit in edits:
            structure = structure.edited(edit)
        model = model if edits else self.context.build(self.context.source).eval()
        artifact = hand_on(model, structure, folder)
        _check_reload(self.context.build(artifact).eval(), model, self.context.example_inputs)
        return ratio, model

    def budget_report(self, model: nn.Module) -> BudgetReport | None:
        """Return what the budget came to."""
        if self.cost is None or self.settings.budget is None:
            return None
        before = self.cost(self.first.model)
        return BudgetReport(
            self.settings.budget.kind, limit_of(self.settings.budget, before, 1.0), before, self.cost(model)
        )

    @property
    def _round_to(self) -> int:
        return self.settings.round_to or self.context.round_to

    def _ratio_for_budget(self) -> float:
        assert self.cost is not None
        assert self.settings.budget is not None
        limit = limit_of(self.settings.budget, self.cost(self.first.model), self.share)
        return smallest_ratio(
            lambda ratio: self._edited(self._edits(ratio)), self.cost, limit, self.settings.budget.kind
        )

    def _populations(self) -> tuple[Population, Population]:
        """Rank the units of all groups, and scan them if that is the scope."""
        own, settings = self.first.own_ratios, self.settings
        channels = [g for g in self.now.channels if settings.budget or own.get(g.name, settings.ratio)]
        heads = [g for g in self.now.heads if own.get(g.name, settings.head_ratio)]
        groups = [*channels, *heads]
        with traceable(self.now.model), deterministic(settings.seed, settings.threads):
            labelled = partial(self._samples, needs_labels=True)
            scores = score(settings.importance, groups, Evidence(self.now.model, labelled, settings.seed))
            if settings.scope == "sensitivity":
                samples = self._samples(needs_labels=False)
                self.rows = scan(self.now.model, groups, scores, settings.scan_ratios, samples, self.folder)
        began_with = {group.name: group.num_units for group in (*self.first.channels, *self.first.heads)}

        def population(part: Sequence[Group], part_scores: Sequence[torch.Tensor]) -> Population:
            ratios = [own.get(group.name) for group in part]
            damage = [damage_of(group, self.rows) for group in part] if self.rows else []
            units = [began_with[group.name] for group in part]
            return Population(part, list(part_scores), units, ratios, self._round_to, damage)

        split = len(channels)
        return population(channels, scores[:split]), population(heads, scores[split:])

    def _samples(self, *, needs_labels: bool) -> Labelled:
        """Return the training samples that decide, the same in whatever order they are stored."""
        try:
            data = load_buckets(self.context.open_split("train"), "train", needs_labels=needs_labels)
            if len(data) > 1:
                raise DataError("train: samples differ in shape, expected one")
        except DataError as error:
            by = f"importance = {self.settings.importance!r}" if needs_labels else "scope = 'sensitivity'"
            raise DataError(
                f"{by}: {error.message}", hint='importance = "l2" and scope = "global" look at no samples'
            ) from error
        return chosen_samples(data[0], self.settings.num_samples)

    def _edits(self, ratio: float) -> list[Edit]:
        """Return what removes the channels of a ratio, and the heads of theirs."""
        scope = self.settings.scope
        channels = self.channels.removed(self.channels.kept(ratio, self.share, scope))
        heads = self.heads.removed(self.heads.kept(self.settings.head_ratio * self.share, self.share, scope))
        return _edits(self.channels.groups, channels) + _edits(self.heads.groups, heads)

    def _edited(self, edits: Sequence[Edit]) -> nn.Module:
        """Return a copy of the network after the edits.

        Raises:
            CompressionError: it cannot be run any more; names the group that must stay whole.
        """
        model, inputs = copy.deepcopy(self.now.model), self.context.example_inputs
        try:
            _apply(model, edits, inputs)
        except CompressionError as error:
            raise self._culprit(edits, error) from error
        return model

    def _refuse_other_heads(self, edits: Sequence[Edit]) -> None:
        """Raise unless removing heads does what putting zeros behind them does.

        Raises:
            CompressionError: the network's code lays out its heads in another way.
        """
        removals = {
            removal["attention"]: removal["heads"]
            for edit in edits
            for removal in edit["removed"]
            if "heads" in removal
        }
        if not removals:
            return
        inputs = _noise(self.context.example_inputs)
        with ExitStack() as stack, torch.no_grad():
            actual = run_named(self._edited([edit for edit in edits if edit["kind"] == "remove_heads"]), inputs)
            for group in self.heads.groups:
                stack.enter_context(without(group, torch.tensor(removals.get(group.attention, []), dtype=torch.int64)))
            expected = run_named(self.now.model, inputs)
        for one, other in zip(expected, actual, strict=True):
            if (one - other).abs().max() > _SAME_ANSWER * one.abs().max():
                raise CompressionError(
                    "the network answers otherwise without its heads than with zeros for them",
                    hint="its attention does not keep the channels of a head side by side, or scales by their number: "
                    "set head_ratio = 0",
                )

    def _culprit(self, edits: Sequence[Edit], error: CompressionError) -> CompressionError:
        """Return an error that names the first group that cannot be pruned alone."""
        for edit in edits:
            for removal in edit["removed"]:
                try:
                    _apply(copy.deepcopy(self.now.model), [{**edit, "removed": [removal]}], self.context.example_inputs)
                except CompressionError as reason:
                    name = removal.get("attention", removal.get("layer"))
                    return CompressionError(
                        f"the group of layer {name!r} cannot be pruned: {reason.message}",
                        hint=f"its code depends on its width: set ignored_layers = [{json.dumps(name)}]",
                    )
        return error


def _edits(groups: Sequence[Group], gone: Sequence[torch.Tensor]) -> list[Edit]:
    """Return the edit that removes some units of each group, or none if nothing goes."""
    losing = [(group, units) for group, units in zip(groups, gone, strict=True) if len(units)]
    if not losing:
        return []
    if losing[0][0].attention is not None:
        return [{"kind": "remove_heads", "removed": [head_removal(group, units) for group, units in losing]}]
    removals: list[Removal] = [(group.name, True, group.channels_of(units)) for group, units in losing]
    return [removal_edit(removals)]


def _apply(model: nn.Module, edits: Sequence[Edit], example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Make the edits in place.

    Raises:
        CompressionError: the network cannot be run afterwards, or answers in another shape.
    """
    with torch.no_grad():
        shapes = [output.shape for output in run_named(model, example_inputs)]
        apply_structure(model, Structure(edits=tuple(edits)), example_inputs)
        if shapes != [output.shape for output in run_named(model, example_inputs)]:
            raise CompressionError("the network's outputs have another shape afterwards")


def _check_reload(rebuilt: nn.Module, pruned: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Raise unless the rebuilt network answers bit for bit like the pruned one and can be exported."""
    inputs = _noise(example_inputs)
    with torch.no_grad():
        for expected, actual in zip(run_named(pruned, inputs), run_named(rebuilt, inputs), strict=True):
            if not torch.equal(expected, actual):
                raise CompressionError("the pruned network answers differently after it was saved and built again")
    try:
        quietly(lambda: torch.export.export(rebuilt, inputs))
    except Exception as error:  # torch.export has no common root for its refusals, and each of them means the same
        raise CompressionError(f"the pruned network cannot be exported: {error}") from error


def _noise(example_inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for tensor in example_inputs
    )


def _widths(model: nn.Module) -> dict[str, int]:
    """Return the output channels of every prunable layer."""
    return {name: num_channels(layer) for name, layer in prunable_layers(model).items()}


def _heads(first: Prunable, model: nn.Module) -> dict[str, int]:
    """Return the heads of every attention whose heads may go."""
    names = [group.attention for group in first.heads if group.attention is not None]
    return {name: num_heads(model.get_submodule(name)) for name in names}


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[LayerChange, ...]:
    return tuple(LayerChange(name, count, after[name]) for name, count in before.items())
