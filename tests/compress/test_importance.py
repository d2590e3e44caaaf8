from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeopt.compress.batches import Labelled
from edgeopt.compress.gradients import chosen_samples
from edgeopt.compress.groups import Group, channel_groups
from edgeopt.compress.importance import Evidence, score
from edgeopt.compress.layers import dependency_graph, quietly, traceable
from edgeopt.errors import CompressionError

# Rows make the three channels, columns use them.
MAKES = torch.tensor([[3.0, 0.0], [-1.0, 2.0], [0.5, 0.5]])
USES = torch.tensor([[1.0, -1.0, 4.0], [0.0, 2.0, -4.0]])
GAMMA = torch.tensor([-2.0, 0.5, 1.0])


def tiny(*, norm: bool = False) -> nn.Module:
    middle = [nn.BatchNorm1d(3)] if norm else []
    model = nn.Sequential(nn.Linear(2, 3), *middle, nn.Linear(3, 2, bias=False)).eval()
    model[0].weight.data.copy_(MAKES)
    model[0].bias.data.copy_(torch.tensor([0.1, 0.2, 0.3]))
    model[-1].weight.data.copy_(USES)
    if norm:
        model[1].weight.data.copy_(GAMMA)
    return model


def samples() -> Labelled:
    generator = torch.Generator().manual_seed(1)
    return Labelled((torch.randn(5, 2, generator=generator),), torch.tensor([0, 1, 1, 0, 1]))


def groups_of(model: nn.Module, *shape: int) -> list[Group]:
    with traceable(model):
        graph = quietly(lambda: dependency_graph(model, (torch.zeros(shape),)))
        return channel_groups(graph, model)


def scores_of(model: nn.Module, importance: str, data: Callable[[], Labelled] = samples) -> torch.Tensor:
    (group,) = (group for group in groups_of(model, 1, 2) if group.name == "0")
    with traceable(model):
        return score(importance, [group], Evidence(model, data, seed=0))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ("l1", [3 + 1, 3 + 3, 1 + 8]),
        ("l2", [9 + 1, 5 + 5, 0.5 + 32]),
        ("outgoing_l1", [1, 3, 8]),
        # Distances of the filters: 0-1 sqrt(16 + 4), 0-2 sqrt(6.25 + 0.25), 1-2 sqrt(2.25 + 2.25).
        ("fpgm", [20**0.5 + 6.5**0.5, 20**0.5 + 4.5**0.5, 6.5**0.5 + 4.5**0.5]),
    ],
)
def test_score_is_the_norm_over_the_groups_mean_when_worked_by_hand(importance: str, expected: list[float]) -> None:
    relative = torch.tensor(expected, dtype=torch.float64) / (sum(expected) / 3)
    torch.testing.assert_close(scores_of(tiny(), importance), relative)


def test_score_is_the_size_of_gamma_when_batch_norm_ranks() -> None:
    assert scores_of(tiny(norm=True), "bn_scale").tolist() == [2, 0.5, 1]


def test_score_divides_by_those_not_smaller_when_lamp_ranks() -> None:
    # Squared norms 10, 10, 32.5: of the two equal ones the first counts as the smaller.
    expected = torch.tensor([10 / 52.5, 10 / 42.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(scores_of(tiny(), "lamp"), expected)


def gradients_by_formula(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    """Differentiate softmax and cross entropy by hand: d loss / d logits is the softmax minus one at the label."""
    found = []
    for values, label in zip(samples().inputs[0], samples().labels, strict=True):  # type: ignore[arg-type]
        hidden = MAKES @ values + model[0].bias.detach()
        of_logits = functional.softmax(USES @ hidden, dim=0) - functional.one_hot(label, 2)
        of_hidden = USES.T @ of_logits
        found.append(
            {"uses": torch.outer(of_logits, hidden), "makes": torch.outer(of_hidden, values), "bias": of_hidden}
        )
    return found


def test_score_is_the_mean_square_of_the_slope_when_taylor_ranks() -> None:
    model = tiny()
    slopes = [
        (MAKES * of["makes"]).sum(1) + model[0].bias.detach() * of["bias"] + (USES * of["uses"]).sum(0)
        for of in gradients_by_formula(model)
    ]
    expected = torch.stack(slopes).double().square().mean(0)
    torch.testing.assert_close(scores_of(model, "taylor"), expected, rtol=1e-5, atol=1e-9)


def test_score_is_half_the_curvature_times_the_squares_when_hessian_ranks() -> None:
    model = tiny()
    gradients = gradients_by_formula(model)
    squares = {name: torch.stack([of[name] for of in gradients]).double().square().mean(0) for name in gradients[0]}
    expected = (
        (MAKES**2 * squares["makes"]).sum(1)
        + model[0].bias.detach() ** 2 * squares["bias"]
        + (USES**2 * squares["uses"]).sum(0)
    ) / 2
    torch.testing.assert_close(scores_of(model, "hessian"), expected, rtol=1e-5, atol=1e-9)


def test_taylor_finds_the_channel_that_nothing_uses_when_its_weights_are_the_largest() -> None:
    model = tiny()
    model[0].weight.data[2] = 100.0
    model[-1].weight.data[:, 2] = 0.0

    assert scores_of(model, "taylor").argmin() == scores_of(model, "hessian").argmin() == 2
    assert scores_of(model, "l2").argmax() == 2


def test_random_scores_depend_on_the_seed_alone_when_asked_again() -> None:
    groups = groups_of(tiny(), 1, 2)[:1]
    first, again, other = (score("random", groups, Evidence(tiny(), samples, seed))[0] for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_score_has_the_same_bits_when_the_samples_come_in_another_order(importance: str) -> None:
    def chosen(order: list[int]) -> Callable[[], Labelled]:
        return lambda: chosen_samples(samples().take(torch.tensor(order)), 4)

    assert torch.equal(
        scores_of(tiny(), importance, chosen([0, 1, 2, 3, 4])), scores_of(tiny(), importance, chosen([3, 1, 4, 0, 2]))
    )


@pytest.mark.parametrize(("importance", "why"), [("bn_scale", "no batch norm"), ("outgoing_l1", "uses its channels")])
def test_score_refuses_when_the_importance_does_not_fit(importance: str, why: str) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Softmax(dim=1))
    with pytest.raises(CompressionError, match=why) as caught:
        scores_of(model, importance)
    assert "does not fit layer '0'" in caught.value.message
    assert "ignored_layers" in str(caught.value.hint)


class Mixed(nn.Module):
    """Every way in which channels are coupled: sum, concatenation, blocks, depthwise, transposed, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.blocks = nn.Conv2d(10, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 8, 1, groups=2)
        self.grow = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.last = nn.Linear(6 * 64, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = self.stem(image).relu()
        body = stem + self.branch(stem)
        both = self.norm(torch.cat([self.left(body), self.right(body)], dim=1))
        grown = self.grow(self.grouped(self.blocks(both).relu()).relu())
        return self.last(grown.flatten(1))


MIXED_WEIGHTS = {
    # The channels of each group, and the entries of each weight that go with channel c of it.
    "stem": {
        "stem.weight": lambda w, c: w[c],
        "branch.weight": lambda w, c: w[c],
        "left.weight": lambda w, c: w[:, c],
        "right.weight": lambda w, c: w[:, c],
    },
    "left": {"left.weight": lambda w, c: w[c], "norm.weight": lambda w, c: w[c], "blocks.weight": lambda w, c: w[:, c]},
    "right": {
        "right.weight": lambda w, c: w[c],
        "norm.weight": lambda w, c: w[4 + c],
        "blocks.weight": lambda w, c: w[:, 4 + c],
    },
    # Channels 0-5 go to the first four outputs of the convolution in two blocks, 6-11 to the last four.
    "blocks": {
        "blocks.weight": lambda w, c: w[c],
        "grouped.weight": lambda w, c: w[:4, c] if c < 6 else w[4:, c - 6],
    },
    "grouped": {"grouped.weight": lambda w, c: w[c], "grow.weight": lambda w, c: w[c]},
    # A picture of 4 x 4 grows to 8 x 8: 64 values a channel.
    "grow": {"grow.weight": lambda w, c: w[:, c], "last.weight": lambda w, c: w[:, 64 * c : 64 * (c + 1)]},
}


def test_channel_sums_take_exactly_the_weights_of_a_channel_when_layers_are_coupled() -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    nn.init.uniform_(model.norm.weight)
    weights = dict(model.named_parameters())
    groups = {"stem" if "stem" in group.makers else group.name: group for group in groups_of(model, 1, 1, 4, 4)}

    for name, parts in MIXED_WEIGHTS.items():
        group = groups[name]
        expected = [
            sum(float(pick(weights[weight].detach(), channel).double().abs().sum()) for weight, pick in parts.items())
            for channel in range(group.width)
        ]
        found = group.channel_sums(torch.abs)
        assert found.tolist() == pytest.approx(expected, rel=1e-6), name


def test_units_hold_one_channel_of_each_block_when_a_convolution_has_blocks() -> None:
    groups = {group.name: group for group in groups_of(Mixed(), 1, 1, 4, 4)}

    assert groups["blocks"].units.tolist() == [[channel, channel + 6] for channel in range(6)]
    assert groups["grouped"].units.tolist() == [[channel, channel + 4] for channel in range(4)]
    assert groups["left"].units.tolist() == [[0], [1], [2], [3]]


def test_fpgm_is_nought_when_all_filters_are_alike() -> None:
    model = tiny()
    model[0].weight.data[:] = 1.0

    assert scores_of(model, "fpgm").tolist() == [0, 0, 0]
