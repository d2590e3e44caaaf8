"""The tree of errors: what the docstring promises is what exists."""

import re
from pathlib import Path

import pytest

from edgeopt import errors
from edgeopt.errors import EdgeoptError, LoweringError, Refusal, did_you_mean


def classes() -> list[type[EdgeoptError]]:
    found = [EdgeoptError]
    for parent in found:
        found += parent.__subclasses__()
    return [cls for cls in found if cls.__module__.split(".")[0] == "edgeopt"]


def test_exit_codes_are_unique_when_all_classes_are_compared() -> None:
    codes = [cls.exit_code for cls in classes()]
    assert len(codes) == len(set(codes)), {cls.__name__: cls.exit_code for cls in classes()}


def test_exit_codes_keep_clear_of_what_shells_and_python_use() -> None:
    assert all(1 <= cls.exit_code < 120 for cls in classes())


def test_docstring_names_exactly_the_classes_when_compared_with_the_code() -> None:
    drawn = re.findall(r"^\s*[├└─ ]*(\w*Error) +(\d+) ", errors.__doc__ or "", re.MULTILINE)
    assert dict(drawn) == {cls.__name__: str(cls.exit_code) for cls in classes()}


def test_error_classes_are_all_in_the_tree_when_other_modules_are_searched() -> None:
    root = Path(errors.__file__).parent
    others = [path for path in root.rglob("*.py") if path.name != "errors.py"]
    bases = "|".join(cls.__name__ for cls in classes())
    outside = [
        path for path in others if re.search(rf"^class \w+\((errors\.)?({bases})\b", path.read_text(), re.MULTILINE)
    ]
    assert not outside
    assert others


def test_docstring_names_no_class_twice() -> None:
    drawn = re.findall(r"(\w*Error) +\d+ ", errors.__doc__ or "")
    assert len(drawn) == len(set(drawn))


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_errors_say_in_one_sentence_what_they_mean(cls: type[EdgeoptError]) -> None:
    assert cls.__doc__
    assert cls.__doc__.strip().endswith(".")


def test_str_puts_stage_before_and_hint_after_when_both_are_set() -> None:
    error = EdgeoptError("x.toml: fact", hint="do this")
    error.stage = "export"
    assert str(error) == "[export] x.toml: fact\n  hint: do this"
    assert str(EdgeoptError("x.toml: fact")) == "x.toml: fact"


def test_lowering_error_names_every_node_when_several_stand_in_the_way() -> None:
    refusals = (Refusal("n1", "Erf", "no int8 kernel"), Refusal("n2", "Loop", "no control flow"))
    assert str(LoweringError("2 nodes", refusals=refusals)) == (
        "2 nodes\n  - Erf 'n1': no int8 kernel\n  - Loop 'n2': no control flow"
    )


def test_did_you_mean_lists_all_when_nothing_is_close() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("zzz", []) is None
