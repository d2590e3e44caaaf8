"""What the console writes, and where."""

import io
import logging

import click
import pytest

from edgeopt.cli.console import BarReporter, LineReporter, bytes_text, percent_text, print_table, reporting
from edgeopt.stage import inner_stages, logger, report_progress, reporting_to, stage, track


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (33_100, "33.1 kB"),
        (5_000_000, "5.0 MB"),
        (7 * 10**12, "7000.0 GB"),
    ],
)
def test_bytes_text_names_the_unit_when_given_a_size(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(("share", "text"), [(None, "-"), (1.0, "100 %"), (0.99999, "99.99 %"), (0.5, "50.00 %")])
def test_percent_text_reads_100_only_when_it_is_all(share: float | None, text: str) -> None:
    assert percent_text(share) == text


def test_print_table_keeps_brackets_when_a_cell_looks_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("path",), [["build/[red]/arm64"], ["x" * 300]])
    assert capsys.readouterr().out == f"path\nbuild/[red]/arm64\n{'x' * 300}\n"


def test_line_reporter_writes_every_five_seconds_when_a_loop_is_long(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter(range(0, 100, 2))
    reporter = LineReporter(clock=lambda: next(seconds))
    for done in range(1, 9):
        reporter.progress("samples", done, 8)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "samples: 3/8"
    assert len(lines) == 2


def test_line_reporter_writes_what_a_loop_has_found_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0, 6, 6])
    reporter = LineReporter(clock=lambda: next(seconds))
    with reporting_to(reporter), inner_stages(), stage("inside another"):
        report_progress("search x86", 3, 24, "best so far: drop 0.02 with 4 moves")
    assert capsys.readouterr().err == "search x86: 3/24, best so far: drop 0.02 with 4 moves\n"


def test_reporting_writes_stages_to_stderr_when_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(verbose=False, quiet=False), stage("export"):
        logger.info("opset %s", "[18]")
        logger.debug("unseen")
        logger.warning("odd")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "export ...\nopset [18]\nwarning: odd\nexport done in 0.0 s\n"


def test_reporting_writes_debug_records_when_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(verbose=True, quiet=False):
        logger.debug("seen")
    assert capsys.readouterr().err == "seen\n"


def test_reporting_writes_errors_only_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(verbose=False, quiet=True), stage("export"):
        logger.warning("unseen")
        logger.error("seen")
        list(track([1, 2], total=2, description="samples"))
    assert capsys.readouterr().err == "error: seen\n"


def test_reporting_leaves_the_logger_as_it_was_when_the_block_fails() -> None:
    before = logger.level, logger.propagate, list(logger.handlers)
    with pytest.raises(ValueError, match="x"), reporting(verbose=True, quiet=False):
        raise ValueError("x")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_reporting_refuses_when_verbose_and_quiet() -> None:
    with pytest.raises(click.UsageError), reporting(verbose=True, quiet=True):
        pass


def test_bar_reporter_removes_bars_and_leaves_a_line_when_a_stage_ends() -> None:
    from rich.console import Console
    from rich.progress import Progress

    text = io.StringIO()
    with Progress(console=Console(file=text, width=80), transient=True) as progress:
        reporter = BarReporter(progress)
        reporter.started("calibrate")
        reporter.progress("samples", 3, 8)
        assert [(task.description, task.completed, task.total) for task in progress.tasks] == [
            ("calibrate", 0, None),
            ("samples", 3, 8),
        ]
        reporter.finished("calibrate", 1.25)
        assert not progress.tasks
    assert "calibrate done in 1.2 s" in text.getvalue()
    assert logging.getLogger("edgeopt").handlers == []
