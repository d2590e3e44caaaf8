"""Verdicts as rows."""

import math

from edgeopt.cli.report import OUTPUT_COLUMNS, VERDICT_COLUMNS, output_cells, verdict_cells, worst
from edgeopt.verdict import OutputParity, ParityReport


def output(**figures: object) -> OutputParity:
    facts = {
        "name": "logits",
        "max_steps": 1.0,
        "worst_steps_sample": "a",
        "equal_fraction": 0.995,
        "sqnr_db": 28.04,
        "worst_sample": "b",
        "cosine": 0.99876,
        "worst_cosine_sample": "c",
        "top1_agreement": 1.0,
    }
    return OutputParity(**{**facts, **figures})


def report(*outputs: OutputParity, passed: bool = True, steps_judged: bool = True) -> ParityReport:
    return ParityReport(passed, "ai-edge-litert 2", (), 16, steps_judged, 1.0, outputs)


def test_verdict_cells_take_the_worst_of_all_outputs_when_there_are_two() -> None:
    cells = verdict_cells(report(output(), output(max_steps=3.0, sqnr_db=30.0, top1_agreement=None)))
    assert cells == ("passed", "3", "99.50 %", "28.0 dB", "0.9988", "100 %")


def test_verdict_cells_show_nan_when_one_output_has_it() -> None:
    cells = verdict_cells(report(output(), output(max_steps=math.nan, sqnr_db=math.nan), passed=False))
    assert cells[:4] == ("failed", "nan", "99.50 %", "nan dB")


def test_verdict_cells_fill_the_row_when_nothing_was_verified() -> None:
    assert verdict_cells(None) == ("not verified", "-", "-", "-", "-", "-")
    assert len(verdict_cells(None)) == len(VERDICT_COLUMNS)


def test_output_cells_show_accuracy_before_and_after_when_samples_have_labels() -> None:
    cells = output_cells(output(float_accuracy=0.99, accuracy=0.98), steps_judged=False)
    assert len(cells) == len(OUTPUT_COLUMNS)
    assert cells[1] == "1 (not judged)"
    assert cells[-1] == "99.00 % -> 98.00 %"
    assert output_cells(output(), steps_judged=True)[-1] == "-"


def test_worst_is_nan_when_it_comes_first_or_last() -> None:
    assert math.isnan(worst(max, [math.nan, 1.0]))
    assert math.isnan(worst(min, [1.0, math.nan]))
    assert worst(max, [1.0, 2.0]) == 2.0
