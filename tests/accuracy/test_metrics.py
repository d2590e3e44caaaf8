"""Metrics, labels and intervals, by hand."""

from pathlib import Path

import numpy as np
import pytest

from edgeopt.accuracy.labels import truth_of
from edgeopt.accuracy.measure import measure
from edgeopt.accuracy.metrics import metric_named
from edgeopt.accuracy.paired import drop_interval, mcnemar_p_value
from edgeopt.accuracy.resolution import check_resolution
from edgeopt.errors import DataError, MetricError, ModelError, RecipeError
from edgeopt.samples import Sample
from edgeopt.settings import AccuracySettings

HERE = Path(__file__).parent


def figure(name: str, answers: object, labels: object) -> float:
    metric = metric_named(name, HERE)
    return metric.total(metric.parts(np.array(answers, np.float64), np.array(labels)))


def labelled(*labels: object) -> list[Sample]:
    return [Sample(f"s{index}", {}, label) for index, label in enumerate(labels)]


def test_top1_counts_right_classes_when_ties_go_to_the_first() -> None:
    assert figure("top1", [[0, 1], [1, 0], [1, 1], [0, 1]], [1, 1, 0, 1]) == 0.75


def test_top5_counts_labels_that_fewer_than_five_classes_beat() -> None:
    answers = [[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]]
    assert figure("top5", answers, [4, 5]) == 0.5


def test_miou_is_the_mean_over_classes_that_occur() -> None:
    scores = np.zeros((1, 3, 2, 2))
    scores[0, 0], scores[0, 1, 0, 0] = 1, 2  # class 1 in one pixel, class 0 in three, class 2 nowhere
    assert figure("miou", scores, [[[1, 1], [0, 0]]]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert figure("miou", scores, [[[1, -1], [0, 0]]]) == 1.0  # a pixel of which nothing is known does not count
    assert figure("miou", [[[[1.0, -1.0]]]], [[[1, 0]]]) == 1.0  # one channel: class 1 above 0


def test_mae_psnr_and_cosine_are_means_over_samples() -> None:
    assert figure("mae", [[1.0, 2.0], [3.0, 3.0]], [[0.0, 2.0], [3.0, 5.0]]) == 0.75
    # Span of the targets 10; mean squared error 1 and 0.01: 20 and 40 dB.
    assert figure("psnr", [[1.0, 11.0], [0.1, 9.9]], [[0.0, 10.0], [0.0, 10.0]]) == pytest.approx(30.0)
    assert figure("cosine", [[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, 0.0]]) == pytest.approx((1 + 0.5**0.5) / 2)


def test_metric_of_the_users_is_called_and_its_numbers_are_kept_by_sample(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def near(answers, labels):\n    return abs(answers[:, 0] - labels) < 1\n")
    metric = metric_named("m.py:near", tmp_path)
    assert metric.parts(np.array([[0.5], [3.0]]), np.array([0, 0])).tolist() == [1.0, 0.0]


WRONG = {
    "raises": ("def f(a, l):\n    raise ValueError('no')\n", r"metric 'm.py:f' raised ValueError on 2 samples: no"),
    "gives NaN": ("def f(a, l):\n    return float('nan')\n", "metric 'm.py:f' gave nan for the float network"),
    "gives infinity": ("def f(a, l):\n    return float('inf')\n", "gave inf for the float network"),
    "wants more samples": (
        "def f(a, l):\n    assert len(a) >= 100, 'needs 100 samples'\n",
        "raised AssertionError on 2 samples: needs 100 samples",
    ),
    "gives another number of numbers": ("def f(a, l):\n    return [1, 2, 3]\n", r"gave \[3\], expected a number or 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_measure_refuses_when_the_users_metric(tmp_path: Path, case: str) -> None:
    code, message = WRONG[case]
    (tmp_path / "m.py").write_text(code)
    metric, answers = metric_named("m.py:f", tmp_path), np.ones((2, 3))
    truth = truth_of(labelled(0, 0), metric, answers)
    with pytest.raises(MetricError, match=message):
        measure(metric, "y", truth, answers, answers)


def test_metric_named_refuses_when_the_file_or_the_function_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file 'm\.py'"):
        metric_named("m.py:f", tmp_path)
    (tmp_path / "m.py").write_text("def g(a, l):\n    return 0.0\n")
    with pytest.raises(ModelError, match=r"m\.py has no function 'f'"):
        metric_named("m.py:f", tmp_path)


def test_measure_refuses_when_the_quantized_network_answers_nan() -> None:
    metric, answers = metric_named("top1", HERE), np.eye(2)
    with pytest.raises(MetricError, match="'y' of the quantized network is NaN or infinite on held-out sample 1"):
        measure(metric, "y", truth_of(labelled(0, 1), metric, answers), answers, np.array([[1, 0], [0, np.nan]]))


BAD_LABELS = {
    "is no class": ("top1", np.eye(2), [0, 2], "'s1': label 2 is no class of an output with 2, expected 0 to 1"),
    "is negative": ("top1", np.eye(2), [0, -1], "label -1 is no class"),
    "is an array": ("top1", np.eye(2), [0, np.array([1, 0])], r"expected one class number"),
    "is missing": ("top1", np.eye(2), [0, None], "1 of 2 held-out samples have no label, 's1' among them"),
    "is a mask of another size": (
        "miou", np.zeros((1, 2, 3, 3)), [np.zeros((2, 2), np.int64)], r"expected a mask of integers \[3, 3\]",
    ),
    "has an unknown class": ("miou", np.zeros((1, 2, 1, 1)), [np.array([[2]])], "label 2 is no class"),
    "has another size": ("mae", np.zeros((1, 4)), [np.zeros(3)], r"shape \[3\], expected finite numbers \[4\]"),
    "is NaN": ("mae", np.zeros((1, 2)), [np.array([0, np.nan])], "expected finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LABELS)
def test_truth_of_refuses_when_a_label(case: str) -> None:
    name, answers, labels, message = BAD_LABELS[case]
    with pytest.raises(DataError, match=message):
        truth_of(labelled(*labels), metric_named(name, HERE), answers)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("top1", (2, 2, 2), r"needs an output of shape \(classes\), got \[2, 2\]"),
        ("top1", (2, 1), "needs at least 2 classes"),
        ("top5", (2, 5), "needs at least 6 classes, the output has 5"),
        ("miou", (2, 3), r"needs an output of shape \(classes, height, width\)"),
        ("psnr", (2, 3), "'psnr' needs labels"),
    ],
)
def test_truth_of_refuses_when_the_metric_does_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        truth_of(labelled(None, None), metric_named(name, HERE), np.zeros(shape))


def test_truth_of_takes_the_float_answers_when_there_are_no_labels() -> None:
    answers = np.array([[0.0, 1.0], [3.0, 2.0]])
    truth = truth_of(labelled(None, None), metric_named("top1", HERE), answers)
    assert truth.is_proxy
    assert truth.labels is not None
    assert truth.labels.tolist() == [1, 0]
    found, _ = measure(metric_named("top1", HERE), "y", truth, answers, answers[:, ::-1])
    assert (found.float_figure, found.figure, found.drop, found.disagreement) == (1.0, 0.0, 1.0, 1.0)


def test_drop_is_positive_when_an_error_grows() -> None:
    metric, target = metric_named("mae", HERE), np.zeros((2, 1))
    truth = truth_of(labelled(np.zeros(1), np.zeros(1)), metric, target)
    found, _ = measure(metric, "y", truth, np.array([[0.5], [0.5]]), np.array([[1.0], [0.5]]))
    assert found.drop == 0.25


# ---------------------------------------------------------------- intervals


def parts(lost: int, won: int, both: int) -> tuple[np.ndarray, np.ndarray]:
    reference = np.array([1.0] * lost + [0.0] * won + [1.0] * both)
    actual = np.array([0.0] * lost + [1.0] * won + [1.0] * both)
    return reference, actual


def test_drop_interval_is_agresti_and_mins_when_parts_are_right_or_wrong() -> None:
    found = drop_interval(metric_named("top1", HERE), *parts(5, 1, 94))
    assert found is not None
    # 4 / 102 -+ 1.959964 * sqrt(7 - 16 / 102) / 102, by hand.
    assert (found.low, found.high) == pytest.approx((-0.011051, 0.089482), abs=1e-5)
    assert found.holds_zero
    assert found.p_value == pytest.approx(2 * 7 / 64)  # of 6 discordant samples at most 1 on one side


def test_drop_interval_has_a_width_when_no_sample_differs() -> None:
    found = drop_interval(metric_named("top1", HERE), *parts(0, 0, 50))
    assert found is not None
    assert found.low < 0 < found.high
    assert found.p_value == 1.0


def test_mcnemar_p_value_is_exact() -> None:
    assert mcnemar_p_value(1, 9) == pytest.approx(0.021484375)  # R: binom.test(1, 10)
    assert mcnemar_p_value(3, 3) == 1.0


def test_drop_interval_widens_when_several_plans_were_looked_at() -> None:
    once = drop_interval(metric_named("top1", HERE), *parts(8, 0, 92))
    often = drop_interval(metric_named("top1", HERE), *parts(8, 0, 92), num_looks=10)
    assert once is not None
    assert often is not None
    assert often.low < once.low < once.high < often.high
    assert not once.holds_zero


def test_drop_interval_holds_the_drop_when_samples_are_drawn_anew() -> None:
    random = np.random.default_rng(1)
    reference = random.normal(size=200)
    lost = 0.1 + 0.05 * random.normal(size=200)
    found = drop_interval(metric_named("cosine", HERE), reference, reference - lost)
    assert found is not None
    reach = 1.96 * lost.std() / 200**0.5  # the normal approximation
    assert (found.low, found.high) == pytest.approx((lost.mean() - reach, lost.mean() + reach), abs=0.001)


def test_drop_interval_is_none_when_there_is_one_number_for_all() -> None:
    assert drop_interval(metric_named("cosine", HERE), np.array(1.0), np.array(0.9)) is None
    assert drop_interval(metric_named("top1", HERE), np.ones(1), np.ones(1)) is None


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metric": "top2", "max_drop": 0.1}, "(?s)there is no metric 'top2'.*did you mean 'top"),
        ({"metric": "top1", "max_drop": -0.1}, "'max_drop' must be at least 0"),
        ({"metric": "top1", "max_drop": 1.0}, "(?s)is a share in.*0.01 is one point"),
        ({"metric": "top1", "max_drop": 0.1, "max_trials": 0}, "a search needs a budget: .* got 0 and 30"),
        ({"metric": "top1", "max_drop": 0.1, "max_minutes": 0.0}, "a search needs a budget: .* got 24 and 0"),
        ({"metric": "top1", "max_drop": 0.1, "precisions": ("int8",)}, "what nodes are moved to from int8"),
    ],
)
def test_accuracy_settings_refuse(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        AccuracySettings(**values)  # type: ignore[arg-type]
    assert raised.match(message)


def test_check_resolution_refuses_when_the_limit_is_finer_than_a_sample() -> None:
    with pytest.raises(MetricError, match="needs at least 200 held-out samples, there are 64"):
        check_resolution(AccuracySettings("top1", 0.005), 64)
    check_resolution(AccuracySettings("top1", 0.0), 64)
    check_resolution(AccuracySettings("mae", 0.005), 64)
    check_resolution(AccuracySettings("top1", 0.02), 64)
