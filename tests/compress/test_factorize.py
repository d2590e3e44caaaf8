from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from small_nets import build_small, rebuilding, small_net, step_context
from torch import nn

from edgeopt.compress.chain import run_step
from edgeopt.compress.factorize import factorize
from edgeopt.compress.layers import count_macs
from edgeopt.compress.low_rank import fill_product, form_of, largest_ranks, product, ranks_of_energy
from edgeopt.compress.step import hand_on, result_in
from edgeopt.compress.structure import Structure
from edgeopt.errors import CompressionError
from edgeopt.steps import FactorizeSettings

LAYERS = {
    "linear": (nn.Linear(6, 10), (3, 6)),
    "point": (nn.Conv2d(6, 8, 1, stride=2, padding=1), (1, 6, 5, 7)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1, stride=2), (1, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=(1, 2), stride=(2, 1), dilation=(1, 2), bias=False), (1, 4, 9, 11)),
    "same": (nn.Conv2d(4, 6, 5, padding="same"), (1, 4, 8, 8)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (1, 4, 8, 8)),
}


@pytest.mark.parametrize("form", ["tucker2", "cp"])
@pytest.mark.parametrize("name", LAYERS)
def test_product_answers_like_its_layer_when_the_rank_is_full(name: str, form: str) -> None:
    torch.manual_seed(0)
    layer, shape = copy.deepcopy(LAYERS[name])
    nn.init.normal_(layer.weight)
    form = form_of(layer, form)
    layers = product(layer, form, largest_ranks(layer, form))
    error = fill_product(layer, form, layers)
    values = torch.randn(shape)

    assert error < (2e-3 if form == "cp" else 1e-6)  # alternating least squares comes near, singular values are exact
    expected = layer(values).detach()
    assert torch.allclose(layers(values), expected, atol=(2e-2 if form == "cp" else 1e-5) * float(expected.abs().max()))


@pytest.mark.parametrize("form", ["svd", "tucker2", "cp"])
def test_fill_product_finds_the_factors_when_the_weight_is_of_low_rank(form: str) -> None:
    torch.manual_seed(1)
    if form == "svd":
        layer: nn.Module = nn.Linear(12, 10)
        layer.weight.data = torch.randn(10, 2) @ torch.randn(2, 12)
    elif form == "tucker2":
        layer = nn.Conv2d(12, 10, 3)
        layer.weight.data = torch.einsum(
            "or,rshw,is->oihw", torch.randn(10, 2), torch.randn(2, 2, 3, 3), torch.randn(12, 2)
        )
    else:
        layer = nn.Conv2d(12, 10, 3)
        factors = [torch.randn(size, 2) for size in (10, 12, 3, 3)]
        layer.weight.data = torch.einsum("or,ir,hr,wr->oihw", *factors)
    ranks = ranks_of_energy(layer, form, 1.0)

    assert ranks == {"svd": (2,), "tucker2": (2, 2), "cp": (2,)}[form]
    assert fill_product(layer, form, product(layer, form, ranks)) < 1e-5


def test_ranks_of_energy_keeps_the_share_when_worked_by_hand() -> None:
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.diag(torch.tensor([3.0, 2.0, 1.0]))  # squares 9, 4, 1 of 14

    assert ranks_of_energy(layer, "svd", 9 / 14) == (1,)
    assert ranks_of_energy(layer, "svd", 9.1 / 14) == (2,)
    assert ranks_of_energy(layer, "svd", 1.0) == (3,)


class Deep(nn.Module):
    """A spatial convolution with a stride, one of a point, one in groups and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(1, 32, 3, padding=1, stride=2)
        self.wide = nn.Conv2d(32, 32, 3, padding=1)
        self.point = nn.Conv2d(32, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.point(self.wide(self.spatial(image).relu()).relu())
        return self.head(self.depthwise(hidden).mean(dim=(2, 3)))


build_deep = rebuilding(Deep, 1, 1, 8, 8)


def test_factorize_rebuilds_the_network_bit_for_bit_when_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    context = step_context(build_deep, 1, 1, 8, 8)
    report, summary = run_step(
        context, FactorizeSettings(ranks={"wide": 8, "point": 4}, layers=("wide", "point")), tmp_path
    )
    rebuilt = build_deep(result_in(tmp_path))

    assert [type(layer) for layer in rebuilt.wide] == [nn.Conv2d] * 3
    assert [tuple(layer.weight.shape) for layer in rebuilt.point] == [(4, 32, 1, 1), (32, 4, 1, 1)]
    # 16 positions: 32*32*9 -> 32*8 + 8*8*9 + 8*32, and 32*32 -> 32*4 + 4*32.
    saved = 16 * (32 * 32 * 9 - (256 + 576 + 256) + 1024 - 256)
    assert report["before"]["num_macs"] - report["after"]["num_macs"] == saved
    assert "2 layers factorized" in summary
    torch.export.export(rebuilt.eval(), (torch.zeros(1, 1, 8, 8),))


def test_factorize_keeps_the_budget_when_one_is_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = count_macs(Deep(), (torch.zeros(1, 1, 8, 8),))
    report = factorize(step_context(build_deep, 1, 1, 8, 8), FactorizeSettings(max_macs=0.5, round_to=8), tmp_path)
    after = count_macs(build_deep(result_in(tmp_path)), (torch.zeros(1, 1, 8, 8),))

    assert 0.3 * whole < after <= 0.5 * whole
    assert 0.2 < report.energy < 1
    # 32 x 8 + 8 x 10 weights are more than 32 x 10.
    assert "head" in report.kept_whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FactorizeSettings(layers=("wider",)), "no convolution or linear layer 'wider'\n  hint: did you mean 'wide'"),
        (
            FactorizeSettings(layers=("depthwise",)),
            "layer 'depthwise' cannot be factorized: it is transposed or has groups",
        ),
        (FactorizeSettings(energy=1.0), "no layer has a rank that keeps 100.0% of its energy"),
        (FactorizeSettings(max_macs=0.01), "no rank brings the network to 1% of its multiplications"),
    ],
)
def test_factorize_refuses_when_it_cannot_do_what_was_asked(
    tmp_path: Path, settings: FactorizeSettings, message: str
) -> None:
    with pytest.raises(CompressionError) as caught:
        factorize(step_context(build_deep, 1, 1, 8, 8), settings, tmp_path)
    assert message in str(caught.value)


def test_factorize_refuses_when_a_weight_is_sparse(tmp_path: Path) -> None:
    sparse = hand_on(small_net(), Structure(constraints={"4.weight": {"kind": "sparse"}}), tmp_path)
    settings = FactorizeSettings(ranks={"4": 4}, layers=("4",))
    with pytest.raises(CompressionError, match="factorize before the step that made it sparse"):
        factorize(step_context(build_small, 1, 1, 8, 8, source=sparse), settings, tmp_path)
