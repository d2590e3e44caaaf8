from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_nets import rebuilding, step_context
from torch import nn
from torch.nn import functional

from edgeopt.compress.replace_activations import ReplaceActivationsReport, replace_activations
from edgeopt.compress.step import result_in
from edgeopt.errors import CompressionError, RecipeError
from edgeopt.steps import ReplaceActivationsSettings


class Swishes(nn.Module):
    """Activations as layers, one of them used twice, and as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(4, 4), nn.SiLU()
        self.gate, self.tail = nn.Sigmoid(), nn.GELU()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.first(self.act(values)))
        return self.tail(hidden * self.gate(hidden)) + functional.silu(values) + values.sigmoid().relu()


build = rebuilding(Swishes, 1, 4)


def replace(folder: Path, **settings: object) -> ReplaceActivationsReport:
    torch.manual_seed(0)
    return replace_activations(step_context(build, 1, 4), ReplaceActivationsSettings(**settings), folder)  # type: ignore[arg-type]


def test_replace_activations_puts_the_cheaper_ones_when_nothing_else_is_said(tmp_path: Path) -> None:
    report = replace(tmp_path)
    model = build(result_in(tmp_path))

    assert [type(layer) for layer in (model.act, model.gate)] == [nn.Hardswish, nn.Hardsigmoid]
    assert model.tail.approximate == "tanh"
    assert report.replaced == {
        "SiLU -> Hardswish": ["act"],
        "GELU -> GELU_tanh": ["tail"],
        "Sigmoid -> Hardsigmoid": ["gate"],
    }
    # act is called twice, and so is silu; what the layers call themselves is not counted.
    assert report.functional_calls_left == {"ReLU": 1, "SiLU": 1, "Sigmoid": 1}


def test_replace_activations_replaces_one_layer_wherever_it_stands(tmp_path: Path) -> None:
    def twice() -> nn.Module:
        return nn.Sequential(act := nn.SiLU(), nn.Linear(4, 4), act)

    context = step_context(rebuilding(twice, 1, 4), 1, 4)
    report = replace_activations(context, ReplaceActivationsSettings(), tmp_path)
    assert report.replaced == {"SiLU -> Hardswish": ["0", "2"]}
    model = rebuilding(twice, 1, 4)(result_in(tmp_path))
    assert [type(model[index]) for index in (0, 2)] == [nn.Hardswish, nn.Hardswish]


def test_replace_activations_leaves_what_is_ignored_when_a_layer_is_named(tmp_path: Path) -> None:
    report = replace(tmp_path, ignored_layers=("tail", "gate"))

    assert report.replaced == {"SiLU -> Hardswish": ["act"]}
    assert isinstance(build(result_in(tmp_path)).tail, nn.GELU)


def test_replace_activations_refuses_when_there_are_only_functions(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="no layer of ReLU, but calls of functions: 1 of ReLU"):
        replace(tmp_path, activations={"ReLU": "ReLU6"})


def test_replace_activations_refuses_when_a_layer_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="no layer 'gates'\n  hint: did you mean 'gate'"):
        replace(tmp_path, ignored_layers=("gates",))


def test_settings_refuse_when_the_activation_is_unknown() -> None:
    with pytest.raises(RecipeError, match="'Silu'"):
        ReplaceActivationsSettings(activations={"Silu": "Hardswish"})
