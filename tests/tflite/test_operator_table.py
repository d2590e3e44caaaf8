"""OPERATORS.md says what the tables in the code say."""

from __future__ import annotations

from operator_table import DOCUMENT, table


def test_document_lists_operators_and_kernels_as_the_code_does():
    assert DOCUMENT.read_text() == table(), "run: python tests/tflite/operator_table.py"


def test_table_gives_versions_and_scales_when_a_row_is_known():
    rows = table().splitlines()
    assert "| CONV_2D | 1 | 3 | 4 | 2.3.0 |" in rows
    assert "| Give scale 1/128 and zero-point 0 and nothing else. | Tanh |" in rows
    assert ", HardSwish, " in next(row for row in rows if row.startswith("| Never. |"))
    assert ", MaxPool, " in next(row for row in rows if "Give the input's scale." in row)
