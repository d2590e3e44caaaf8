"""Low-rank factorization: a layer becomes a product of smaller ones that multiply less.

    svd      Linear, or a convolution of one point:  in -> rank -> out
    tucker2  a spatial convolution:                  1 x 1 to rank_in, the kernel from rank_in to rank_out, 1 x 1 to out
    cp       a spatial convolution:                  1 x 1 to rank, one depthwise kernel an axis, 1 x 1 to out

At full rank each answers like the layer it replaces, but for the rounding of floats.

Source: Denton et al.: Exploiting Linear Structure Within Convolutional Networks, 2014, arXiv 1404.0736 (svd); Kim et
al.: Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications, 2016,
arXiv 1511.06530 (tucker2); Lebedev et al.: Speeding-up Convolutional Neural Networks Using Fine-tuned
CP-Decomposition, 2015, arXiv 1412.6553 (cp).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from edgeopt.compress.constraints import refuse_loss
from edgeopt.compress.layers import count_macs, layers_in, prunable_layers, record_inputs
from edgeopt.compress.low_rank import fill_product, form_of, largest_ranks, product, ranks_of_energy, replaceable
from edgeopt.compress.step import StepContext, hand_on
from edgeopt.errors import CompressionError
from edgeopt.stage import track
from edgeopt.steps import FactorizeSettings

# The energies that a budget chooses from; a finer step changes a rank of hundreds by one.
_ENERGIES = tuple(share / 200 for share in range(199, 39, -1))


@dataclass(frozen=True)
class LayerFactors:
    """One layer that was replaced; ``relative_error`` is of its weights, in the Frobenius norm."""

    name: str
    form: str
    ranks: tuple[int, ...]
    relative_error: float


@dataclass(frozen=True)
class FactorizeReport:
    """The layers that were replaced, those for which no rank saves anything, and the share of energy that was kept."""

    layers: tuple[LayerFactors, ...]
    kept_whole: tuple[str, ...]
    energy: float

    @property
    def summary(self) -> str:
        """How many layers, and the worst error."""
        worst = max(self.layers, key=lambda layer: layer.relative_error)
        return f"{len(self.layers)} layers factorized, worst {worst.name!r} with {worst.relative_error:.1%} error"


def factorize(context: StepContext, settings: FactorizeSettings, folder: Path) -> FactorizeReport:
    """Replace layers of ``context.source`` by products of smaller ones, and hand the network on.

    Raises:
        CompressionError: a layer is not there or cannot be factorized, no rank saves anything, no energy keeps the
            budget, or a layer's weights are sparse or shared, which a product would not be.
        MissingDependencyError: ``cp`` and ``tucker2`` need the extra ``factorize``.
    """
    model = context.build(context.source)
    chosen = _chosen(model, settings)
    plan = _Plan(model, chosen, context, settings)
    energy = plan.energy()
    ranks = {
        name: rank for name in chosen if plan.num_macs(name, rank := plan.ranks(name, energy)) < plan.num_macs(name)
    }
    if not ranks:
        raise CompressionError(
            f"no layer has a rank that keeps {energy:.1%} of its energy and saves multiplications",
            hint="lower 'energy', or give 'ranks'",
        )
    refuse_loss(context.structure, [f"{name}.weight" for name in ranks], "factorize")
    structure, made = context.structure, []
    for name, rank in track(sorted(ranks.items()), total=len(ranks), description="factorize"):
        layer, form = chosen[name], form_of(chosen[name], settings.form)
        layers = product(layer, form, rank)
        error = fill_product(layer, form, layers)
        model.set_submodule(name, layers)
        structure = structure.edited({"kind": "factorize", "layer": name, "form": form, "ranks": list(rank)})
        made.append(LayerFactors(name, form, rank, error))
    hand_on(model, structure, folder)
    return FactorizeReport(tuple(made), tuple(name for name in chosen if name not in ranks), energy)


def _chosen(model: nn.Module, settings: FactorizeSettings) -> dict[str, nn.Module]:
    """Return the layers that may be replaced, by name.

    Raises:
        CompressionError: one that the recipe names is not there, or has groups and so no rank to lower.
    """
    layers = prunable_layers(model)
    named = {layer for name in (*settings.layers, *settings.ranks) for layer in layers_in(model, name)}
    ignored = {layer for name in settings.ignored_layers for layer in layers_in(model, name)}
    unfit = sorted(name for name in named - ignored if not replaceable(layers[name]))
    if unfit:
        raise CompressionError(f"layer {unfit[0]!r} cannot be factorized: it is transposed or has groups")
    wanted = (named if settings.layers else set(layers)) - ignored
    return {name: layer for name, layer in layers.items() if name in wanted and replaceable(layer)}


class _Plan:
    """Which ranks the layers get, and what that costs."""

    def __init__(
        self, model: nn.Module, chosen: dict[str, nn.Module], context: StepContext, settings: FactorizeSettings
    ) -> None:
        self._layers, self._settings = chosen, settings
        self._round_to = settings.round_to or context.round_to
        self._whole = count_macs(model, context.example_inputs)
        self._inputs = record_inputs(model, list(chosen), context.example_inputs)
        self._macs: dict[tuple[str, tuple[int, ...]], int] = {}

    def energy(self) -> float:
        """Return the recipe's energy, or the largest that keeps its budget of multiplications.

        Raises:
            CompressionError: none does; says how far it goes.
        """
        budget = self._settings.max_macs
        if budget is None:
            return self._settings.energy
        for energy in _ENERGIES:
            if (share := self._share(energy)) <= budget:
                return energy
        raise CompressionError(
            f"no rank brings the network to {budget:.0%} of its multiplications: {_ENERGIES[-1]:.0%} of the energy "
            f"leaves {share:.0%}",
            hint="raise 'max_macs', or ignore fewer layers",
        )

    def ranks(self, name: str, energy: float) -> tuple[int, ...]:
        """Return the ranks of a layer: the recipe's own, or those that keep the energy, rounded up."""
        layer, form = self._layers[name], form_of(self._layers[name], self._settings.form)
        largest = largest_ranks(layer, form)
        if name in self._settings.ranks:
            return tuple(min(self._settings.ranks[name], most) for most in largest)
        rounded = (-(-rank // self._round_to) * self._round_to for rank in ranks_of_energy(layer, form, energy))
        return tuple(min(rank, most) for rank, most in zip(rounded, largest, strict=True))

    def num_macs(self, name: str, ranks: tuple[int, ...] = ()) -> int:
        """Return the multiplications of a layer, or of its product with these ranks.

        They are counted, not computed: before a stride, the first part of a product meets more positions than the rest.
        """
        if (name, ranks) not in self._macs:
            layer = self._layers[name]
            part = product(layer, form_of(layer, self._settings.form), ranks) if ranks else nn.Sequential(layer)
            self._macs[name, ranks] = sum(count_macs(part, (tensor,)) for tensor in self._inputs[name])
        return self._macs[name, ranks]

    def _share(self, energy: float) -> float:
        saved = (self.num_macs(name) - self.num_macs(name, self.ranks(name, energy)) for name in self._layers)
        return (self._whole - sum(max(0, macs) for macs in saved)) / self._whole
