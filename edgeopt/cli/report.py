"""How a verdict looks as a row of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeopt.cli.console import percent_text

if TYPE_CHECKING:
    from edgeopt.verify import ParityReport

VERDICT_COLUMNS = ("verdict", "worst steps", "equal", "worst SQNR", "worst cosine", "top-1")


def verdict_cells(report: ParityReport | None) -> tuple[str, ...]:
    """Return a verdict and its worst figures over all outputs, in the order of :data:`VERDICT_COLUMNS`."""
    if report is None:
        return ("not verified", *["-"] * (len(VERDICT_COLUMNS) - 1))
    agreements = [output.top1_agreement for output in report.outputs if output.top1_agreement is not None]
    return (
        "passed" if report.passed else "failed",
        str(max(output.max_steps for output in report.outputs)),
        percent_text(min(output.equal_fraction for output in report.outputs)),
        f"{min(output.sqnr_db for output in report.outputs):.1f} dB",
        f"{min(output.cosine for output in report.outputs):.4f}",
        percent_text(min(agreements, default=None)),
    )
