"""Class names in a recipe."""

from pathlib import Path

import pytest

from edgeopt.artifacts import TensorInfo
from edgeopt.errors import RecipeError
from edgeopt.labels import labels_of
from edgeopt.settings import LabelSettings

OUTPUTS = [TensorInfo("logits", "float32", (1, 3)), TensorInfo("mask", "float32", (1, 2, 8, 8))]


def test_labels_are_those_of_the_list_or_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("sky\n\n grün \n", encoding="utf-8")
    given = {"logits": LabelSettings(("a", "b", "c")), "mask": LabelSettings(file=tmp_path / "names.txt")}
    assert labels_of(given, OUTPUTS) == {"logits": ["a", "b", "c"], "mask": ["sky", "grün"]}
    assert labels_of({}, OUTPUTS) == {}


@pytest.mark.parametrize(
    ("output", "names", "message"),
    [
        ("logit", ("a", "b", "c"), "(?s)no such output.*did you mean 'logits'"),
        ("logits", ("a", "b"), r"2 names, and the output has the shape \[1, 3\]"),
    ],
)
def test_labels_are_refused_when_they_do_not_fit(output: str, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        labels_of({output: LabelSettings(names)}, OUTPUTS)


def test_labels_are_refused_when_the_file_is_not_there_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"\xff")
    for place in (tmp_path / "names", tmp_path / "none", tmp_path):
        with pytest.raises(RecipeError, match=r"\[labels.logits\] file: .* cannot be read"):
            labels_of({"logits": LabelSettings(file=place)}, OUTPUTS)


@pytest.mark.parametrize("given", [{}, {"names": ("a",), "file": Path("x")}])
def test_labels_come_from_one_place(given: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="either 'names' or a 'file'"):
        LabelSettings(**given)
