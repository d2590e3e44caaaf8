"""What import-linter cannot say: targets, data sets and built-in networks are found, never imported by name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgeopt

PACKAGE = Path(edgeopt.__file__).parent
DISCOVERED = ("edgeopt.targets", "edgeopt.calibration", "edgeopt.recipes")


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_discovered(name: str) -> bool:
    return any(name == folder or name.startswith(folder + ".") for folder in DISCOVERED)


def test_edgeopt_imports_no_target_and_no_dataset_when_all_files_are_read() -> None:
    files = [
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("targets", "calibration", "recipes")
    ]
    assert len(files) > 20
    found = {str(path.relative_to(PACKAGE)): [*filter(is_discovered, imported(path.read_text()))] for path in files}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "source",
    [
        "import edgeopt.targets.arm64",
        "from edgeopt import targets",
        "from edgeopt.calibration.mnist5k import preprocess",
    ],
)
def test_imported_finds_a_static_import_when_there_is_one(source: str) -> None:
    assert any(map(is_discovered, imported(source)))


def test_imported_takes_no_other_name_for_a_target_when_it_is_alike() -> None:
    assert not any(map(is_discovered, imported("from edgeopt import target\nimport edgeopt.calibrate")))
