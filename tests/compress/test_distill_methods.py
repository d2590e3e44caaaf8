"""Distillation beyond the answers: features, several teachers, no labels, and rounding while the student learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import Listed, build_small, noisy_patterns, small_net, step_context
from torch import nn

from edgeopt.artifacts import TorchModel
from edgeopt.compress.chain import run_step
from edgeopt.compress.distill import distill
from edgeopt.compress.fake_quantization import ActivationRounding, RoundedActivation, RoundedWeight
from edgeopt.compress.features import FeatureLoss
from edgeopt.compress.folding import fold_batch_norm, folding_edit
from edgeopt.compress.step import StepContext, hand_on, result_in
from edgeopt.compress.structure import Structure, read_structure
from edgeopt.compress.teachers import Teachers
from edgeopt.compress.train import train
from edgeopt.errors import CompressionError, DataError, RecipeError
from edgeopt.quantize.scheme import scheme_named
from edgeopt.steps import DistillSettings, NetworkSettings, PruneSettings
from edgeopt.steps.distill import FeatureSettings
from edgeopt.training import TrainSettings

SETTINGS = DistillSettings(epochs=3, batch_size=50, learning_rate=1e-2, threads=1, alpha=1.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    folder = tmp_path_factory.mktemp("teacher")
    settings = TrainSettings(epochs=8, batch_size=50, learning_rate=1e-2, threads=1)
    train(step_context(build_small, 1, 1, 8, 8, data=noisy_patterns()), settings, folder)
    return result_in(folder)


def context_of(teacher: TorchModel, source: TorchModel | None = None, *, labelled: bool = True) -> StepContext:
    data = noisy_patterns()
    if not labelled:
        data = tuple(Listed(split.images, None) for split in data)  # type: ignore[assignment]
    return step_context(build_small, 1, 1, 8, 8, source=source or TorchModel(), teacher=teacher, data=data)


# ---------------------------------------------------------------- features


class Fixed(nn.Module):
    """Hands on what it is given, as a layer that can be named."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values)


def feature_loss(kind: str, student: torch.Tensor, teacher: torch.Tensor, weight: float = 1.0) -> float:
    nets = Fixed(), Fixed()
    loss = FeatureLoss(*nets, [FeatureSettings("layer", loss=kind, weight=weight)], (torch.zeros_like(student),))
    with loss.watching():
        for net, values in zip(nets, (student, teacher), strict=True):
            net(values)
        return loss().item()


def test_hint_is_the_mean_squared_difference_when_worked_by_hand() -> None:
    assert feature_loss("hint", torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]), 0.5) == pytest.approx(0.5 * 2.0)


def test_attention_compares_where_values_are_large_when_worked_by_hand() -> None:
    # Means of squares over two channels: (1, 0) for the student; for the teacher (0, 4), of length 4: (0, 1).
    student = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 2.0]], [[0.0, 2.0]]]])

    assert feature_loss("attention", student, teacher) == pytest.approx(2.0)
    assert feature_loss("attention", student, 7 * student) == pytest.approx(0.0, abs=1e-6)  # only where, not how much


def test_relational_is_zero_when_samples_lie_alike() -> None:
    points = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]

    assert feature_loss("relational", 3 * points @ turn + 1, points) == pytest.approx(0.0, abs=1e-5)


def test_relational_compares_distances_and_angles_when_worked_by_hand() -> None:
    # Three points on a line at 0, 1, 2 and at the corners of a triangle with equal sides.
    line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    # Distances over their mean: 3/4, 3/4, 3/2 against 1. Huber: half of 1/16, 1/16 and 1/4; twice each of nine.
    distances = 2 * (1 / 16 + 1 / 16 + 1 / 4) / 2 / 9
    # Angles: 0, 180 and 0 degrees against 60. Cosines differ by 1/2, 3/2 and 1/2, each twice of 27.
    angles = 2 * (1 / 8 + (3 / 2 - 1 / 2) + 1 / 8) / 27

    assert feature_loss("relational", line, triangle) == pytest.approx(distances + 2 * angles, rel=1e-5)


def test_feature_loss_has_a_gradient_when_two_samples_are_the_same() -> None:
    points = torch.ones(3, 2, requires_grad=True)
    net = Fixed()
    loss = FeatureLoss(net, Fixed(), [FeatureSettings("layer", loss="relational")], (torch.zeros(3, 2),))
    with loss.watching():
        net(points)
        loss._layers[1][0](torch.randn(3, 2))
        loss().backward()

    assert points.grad is not None
    assert bool(torch.isfinite(points.grad).all())


def half_of(teacher: TorchModel, folder: Path) -> TorchModel:
    """Return the teacher without half of its channels."""
    folder.mkdir()
    run_step(step_context(build_small, 1, 1, 8, 8, source=teacher), PruneSettings(pruning_ratio=0.5), folder)
    return result_in(folder)


@pytest.mark.parametrize("kind", ["hint", "attention", "relational"])
def test_distill_learns_from_inside_when_the_student_is_narrower(
    tmp_path: Path, teacher: TorchModel, kind: str
) -> None:
    (tmp_path / "student").mkdir()
    context = context_of(teacher, half_of(teacher, tmp_path / "pruned"))
    settings = replace(SETTINGS, features=(FeatureSettings("4", loss=kind, weight=2.0),))
    report = distill(context, settings, tmp_path / "student")
    student = build_small(result_in(tmp_path / "student"))

    assert report.held_out_score > 0.5
    assert report.losses[-1] < report.losses[0]
    assert not [name for name in student.state_dict() if "along" in name]


def test_what_is_trained_along_is_refused_when_there_are_several_processes(
    tmp_path: Path, teacher: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(teacher, half_of(teacher, tmp_path / "pruned"))
    monkeypatch.setattr("edgeopt.compress.train.num_processes", lambda: 2)
    with pytest.raises(CompressionError, match="what is trained along with a student trains in one process") as raised:
        distill(context, replace(SETTINGS, features=(FeatureSettings("4"),)), tmp_path)
    assert raised.value.hint == "set devices = 1"


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (FeatureSettings("44"), "the student has no layer '44'\n  hint: did you mean '4'"),
        (FeatureSettings("4", "zzz"), "the teacher has no layer 'zzz'"),
        (FeatureSettings("4", "9"), "the student's layer '4' gives 4 dimensions, the teacher's '9' 2"),
    ],
)
def test_distill_refuses_when_a_feature_is_not_there(
    tmp_path: Path, teacher: TorchModel, feature: FeatureSettings, message: str
) -> None:
    with pytest.raises(CompressionError) as caught:
        distill(context_of(teacher), replace(SETTINGS, features=(feature,)), tmp_path)
    assert message in str(caught.value)


# ---------------------------------------------------------------- teachers and labels


def test_teachers_average_probabilities_when_there_are_two() -> None:
    class Says(nn.Module):
        def __init__(self, *odds: float) -> None:
            super().__init__()
            self.logits = torch.tensor([odds]).log()

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return self.logits

    both = Teachers([Says(1.0, 3.0), Says(1.0, 1.0)])

    assert both(torch.zeros(1)).exp()[0].tolist() == pytest.approx([3 / 8, 5 / 8])
    # At temperature 2 the odds 1 : 3 are 1 : sqrt 3.
    soft = 1 / (1 + math.sqrt(3))
    assert both.soften((torch.zeros(1),), 2.0).exp()[0, 0].item() == pytest.approx((soft + 0.5) / 2)


def test_distill_learns_from_another_network_when_one_is_named(tmp_path: Path, teacher: TorchModel) -> None:
    asked = []

    def network(settings: NetworkSettings) -> nn.Module:
        asked.append(settings)
        return build_small(teacher)

    context = replace(context_of(TorchModel()), network=network)
    settings = replace(SETTINGS, teachers=(NetworkSettings(weights="w.safetensors"),), own_teacher=False, epochs=6)
    report = distill(context, settings, tmp_path)

    assert asked == [NetworkSettings(weights="w.safetensors")]
    assert report.held_out_score > 0.5


def test_distill_needs_no_labels_when_only_the_teacher_counts(tmp_path: Path, teacher: TorchModel) -> None:
    report = distill(context_of(teacher, labelled=False), replace(SETTINGS, epochs=6), tmp_path)

    assert report.judged_by == "teacher"
    assert report.held_out_score > 0.5


def test_distill_refuses_when_labels_count_and_are_missing(tmp_path: Path, teacher: TorchModel) -> None:
    with pytest.raises(DataError, match="has no label"):
        distill(context_of(teacher, labelled=False), replace(SETTINGS, alpha=0.5), tmp_path)


def test_settings_refuse_when_no_teacher_is_left() -> None:
    with pytest.raises(RecipeError, match="own_teacher = false leaves no teacher"):
        DistillSettings(own_teacher=False)


# ---------------------------------------------------------------- rounding


def test_rounded_weight_is_on_the_grid_of_its_channel_when_worked_by_hand() -> None:
    weight = torch.tensor([[127.0, 63.4, -1.6], [0.0, 0.0, 0.0], [-12.7, 0.06, 5.0]], requires_grad=True)
    rounded = RoundedWeight(0)(weight)
    rounded.sum().backward()

    assert torch.allclose(rounded, torch.tensor([[127.0, 63.0, -2.0], [0.0, 0.0, 0.0], [-12.7, 0.1, 5.0]]))
    assert torch.equal(weight.grad, torch.ones(3, 3))  # straight through


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bounds", [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0)])
def test_rounded_activation_has_the_targets_grid_when_its_range_is_known(
    symmetric: bool, bounds: tuple[float, float]
) -> None:
    scheme = scheme_named("symmetric" if symmetric else "asymmetric")
    params = scheme.activation_params(*bounds)
    rounding = RoundedActivation(symmetric=symmetric)
    rounding.train()(torch.tensor(bounds))
    values = torch.linspace(*bounds, 50)
    expected = (
        np.round(values.numpy() / params.scale).clip(-128 - params.zero_point, 127 - params.zero_point) * params.scale
    )

    assert rounding.eval()(values).detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_rounded_activation_follows_its_input_only_while_training() -> None:
    rounding = RoundedActivation(symmetric=False)
    rounding.train()(torch.tensor([-1.0, 1.0]))
    rounding.train()(torch.tensor([0.0, 3.0]))  # a twentieth of the way
    rounding.eval()(torch.tensor([9.0]))

    assert (rounding.minimum.item(), rounding.maximum.item()) == pytest.approx((-0.95, 1.1))


def test_folding_changes_no_answer_when_norms_follow_layers() -> None:
    torch.manual_seed(0)
    model = small_net()
    model(torch.randn(20, 1, 8, 8))  # statistics that are not 0 and 1
    image = torch.randn(3, 1, 8, 8)
    before = model.eval()(image)
    edit = folding_edit(model, (image,))
    fold_batch_norm(model, edit, (image,))

    assert edit == {"kind": "fold_batch_norm", "pairs": [["0", "1"]]}
    assert not [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert torch.allclose(model(image), before, atol=1e-5)


def test_folding_leaves_a_norm_when_no_layer_is_before_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2))

    assert folding_edit(model, (torch.zeros(1, 1, 8, 8),)) is None


class TwoReaders(nn.Module):
    """What its convolution makes is read by a batch norm and by a sum behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made = self.conv(image)
        answer: torch.Tensor = self.norm(made) + made
        return answer


@pytest.mark.parametrize(
    "model",
    [
        TwoReaders(),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(2)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 2, groups=4), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
    ],
    ids=["read twice", "in place", "grouped", "no statistics"],
)
def test_folding_leaves_a_norm_when_the_answers_would_change(model: nn.Module) -> None:
    assert folding_edit(model, (torch.zeros(1, 1, 8, 8),)) is None


@pytest.mark.parametrize("channels", [4, 6])
def test_folding_scales_the_outputs_of_a_transposed_convolution(channels: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, channels, 2), nn.BatchNorm2d(channels))
    model(3 + 2 * torch.randn(20, 1, 8, 8))
    image = torch.randn(3, 1, 8, 8)
    before = model.eval()(image)
    edit = folding_edit(model, (image,))
    assert edit == {"kind": "fold_batch_norm", "pairs": [["1", "2"]]}
    fold_batch_norm(model, edit, (image,))
    torch.testing.assert_close(model(image), before, rtol=1e-4, atol=1e-5)


def test_a_feature_is_refused_when_its_layer_has_a_batch_norm_folded_in(tmp_path: Path, teacher: TorchModel) -> None:
    settings = replace(SETTINGS, features=(FeatureSettings("0"),), quantization_aware="asymmetric")
    with pytest.raises(CompressionError, match="layer '0' has its batch norm '1' folded in") as raised:
        distill(context_of(teacher, teacher), settings, tmp_path)
    assert raised.value.hint == "student = '1'"


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_distill_rounds_in_bfloat16_too(tmp_path: Path, teacher: TorchModel, scheme: str) -> None:
    settings = replace(SETTINGS, quantization_aware=scheme, precision="bf16-mixed")  # type: ignore[arg-type]
    assert distill(context_of(teacher, teacher), settings, tmp_path).held_out_score > 0.8


def test_distill_leaves_weights_on_the_grid_when_it_is_quantization_aware(tmp_path: Path, teacher: TorchModel) -> None:
    report = distill(context_of(teacher, teacher), replace(SETTINGS, quantization_aware="asymmetric"), tmp_path)
    student = build_small(result_in(tmp_path))

    assert report.held_out_score > 0.8
    assert [edit["kind"] for edit in read_structure(tmp_path / "structure.json").edits] == ["fold_batch_norm"]
    for layer in (student[0], student[4], student[9]):
        weight = layer.weight.detach()
        steps = weight / (weight.flatten(1).abs().amax(1) / 127).reshape(-1, *[1] * (weight.dim() - 1))
        assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert not [name for name in student.state_dict() if "along" in name or "parametrizations" in name]


def test_distill_keeps_zeros_and_shared_values_when_it_is_quantization_aware(
    tmp_path: Path, teacher: TorchModel
) -> None:
    model = build_small(teacher)
    with torch.no_grad():
        model[4].weight[:, ::2] = 0
        model[9].weight.copy_((model[9].weight * 20).round().clamp(-3, 3) / 20)
    constraints = {"4.weight": {"kind": "sparse"}, "9.weight": {"kind": "shared"}}
    for name in ("source", "student"):
        (tmp_path / name).mkdir()
    source = hand_on(model, Structure(constraints=constraints), tmp_path / "source")
    distill(context_of(teacher, source), replace(SETTINGS, quantization_aware="asymmetric"), tmp_path / "student")
    student = build_small(result_in(tmp_path / "student"))

    assert not student[4].weight[:, ::2].any()
    assert 1 < len(student[9].weight.unique()) <= 7
    assert not torch.equal(student[9].weight, model[9].weight)


def test_activation_rounding_rounds_inputs_and_outputs_only_inside_the_block() -> None:
    torch.manual_seed(0)
    model = small_net().eval()
    rounding = ActivationRounding(model, symmetric=False)
    image = torch.randn(4, 1, 8, 8)
    with rounding.applied(model, {}):
        rounding.train()
        model(image)
        rounding.eval()
        rounded = model(image)

    assert len(rounding) == 4  # two convolutions, a linear layer, the output
    assert all(not part.is_empty for part in rounding)
    assert 0 < (rounded - model(image)).abs().max() < 0.2
    assert not torch.nn.utils.parametrize.is_parametrized(model[0])
