"""The README says nothing that is not so: commands, exit codes, recipe, facts of a target, keys of a bundle."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_errors import classes
from tiny_project import ROOT, environment

import edgeopt
from edgeopt.bundle.manifest import complete_manifest
from edgeopt.cli.main import edgeopt as command_line
from edgeopt.errors import EdgeoptError, RecipeError
from edgeopt.recipe import find_recipe, load_recipe
from edgeopt.settings import CorrectSettings
from edgeopt.target import read_target

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """Return what stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r}"
    return found[1]


def first_cells(table: str) -> list[str]:
    """Return the words in the first column of a table that are set as code."""
    return [word for row in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for word in re.findall(r"`([^`]+)`", row)]


def edgeopt_commands() -> list[list[str]]:
    """Return the arguments of every line that starts with ``edgeopt``, in Command line, and after ``&&`` in Try it."""
    lines = [line.strip() for block in blocks("sh") for line in re.split(r"\n|&&", block)]
    words = [shlex.split(line, comments=True) for line in lines if line]
    return [line[1:] for line in words if Path(line[0]).name == "edgeopt"]


def test_exit_codes_are_those_of_the_errors_when_compared() -> None:
    listed = re.findall(r"^\| (\d+) \| `(\w+)` \|", section("Exit codes"), re.MULTILINE)
    assert dict(map(reversed, listed)) == {cls.__name__: str(cls.exit_code) for cls in classes()}
    assert len(listed) == len(classes())


@pytest.mark.parametrize("arguments", edgeopt_commands(), ids=" ".join)
def test_command_is_understood_when_click_parses_it(arguments: list[str]) -> None:
    name, *rest = arguments
    command = command_line.commands[name]
    context = command.make_context(name, rest)
    recipe = context.params.get("recipe")
    if recipe is not None and not recipe.endswith(".toml"):
        assert find_recipe(recipe)


def test_readme_shows_every_command_when_compared() -> None:
    assert {arguments[0] for arguments in edgeopt_commands()} == set(command_line.commands)


def test_a_false_command_is_noticed_when_click_parses_it() -> None:
    with pytest.raises(click.UsageError):
        command_line.commands["build"].make_context("build", ["--no-such-option"])


def test_ci_runs_the_steps_of_command_2_when_compared() -> None:
    second = next(block for block in blocks("sh") if "[demo,test]" in block)
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").replace(" --quiet", "")
    make, *steps = [step.strip() for step in second.split("&&")]
    assert make == "python3 -m venv .venv"
    assert len(steps) == 3
    assert all(step in ci for step in steps)


def test_recipe_by_example_is_valid_when_loaded(tmp_path: Path) -> None:
    example = next(block for block in blocks("toml") if 'method = "prune"' in block)
    (tmp_path / "edgeopt.toml").write_text(example, encoding="utf-8")
    loaded = load_recipe(tmp_path / "edgeopt.toml")
    assert list(loaded.recipe.compress) == ["prune", "distill"]
    (tmp_path / "edgeopt.toml").write_text(example.replace("pruning_ratio", "pruning_rate"), encoding="utf-8")
    with pytest.raises(RecipeError, match="pruning_rate"):
        load_recipe(tmp_path / "edgeopt.toml")


def test_target_by_example_is_valid_when_read(tmp_path: Path) -> None:
    example = next(block for block in blocks("toml") if "model_format" in block)
    (tmp_path / "target.toml").write_text(example, encoding="utf-8")
    (tmp_path / "backend.py").write_text("")
    assert read_target(tmp_path).model_format == "tflite"


def test_calibration_set_by_example_is_valid_when_found(tmp_path: Path) -> None:
    from edgeopt.dataset import find_dataset
    from edgeopt.settings import CalibrationSettings

    folder = tmp_path / "gestures"
    folder.mkdir()
    example = next(block for block in blocks("toml") if "path_options" in block)
    (folder / "calibration.toml").write_text(example, encoding="utf-8")
    found = find_dataset(CalibrationSettings("gestures", options={"folder": "."}), tmp_path)
    assert set(found.facts) == set(tomllib.loads(example))


def test_bundle_json_has_the_keys_that_are_listed_when_compared(tmp_path: Path) -> None:
    listed = first_cells(section("What is in a bundle").split("`bundle.json`, keys")[1])
    made = complete_manifest(
        _described_model(), recipe={}, dataset={}, history={}, corrections=[], parity=None, accuracy=None,
        folder=tmp_path, runtime_package="numpy",
    )  # fmt: skip
    assert sorted(listed) == sorted(made)
    assert list(made["files"]) == []


def test_corrections_have_the_keys_and_defaults_of_the_settings() -> None:
    rows = [line.split(" | ") for line in section("Corrections").splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `"): row[-1].strip("| `") for row in rows}
    assert listed == {key: str(value) for key, value in vars(CorrectSettings()).items()}


def added_lines(diff: str) -> tuple[Path, list[str]]:
    """Return the file that a block of ``diff`` changes, and what it adds."""
    header, *lines = diff.splitlines()
    return ROOT / header.removeprefix("--- "), [line[1:] for line in lines if line.startswith("+")]


@pytest.mark.parametrize("diff", blocks("diff"), ids=["operator", "test"])
def test_operator_by_example_stands_in_the_sources_when_compared(diff: str) -> None:
    path, added = added_lines(diff)
    source = path.read_text(encoding="utf-8").splitlines()
    context = [line[1:] for line in diff.splitlines() if line.startswith(" ")]
    assert added
    assert [line for line in (*added, *context) if line not in source] == []


def test_operator_by_example_is_all_that_is_missing_when_it_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.errors import LoweringError
    from edgeopt.tflite import unary
    from edgeopt.tflite.lower import lower
    from edgeopt.tflite.operators import OPERATORS

    sys.path.insert(0, str(ROOT / "tests/tflite"))
    from test_operators import assert_floats_equal
    from tflite_graphs import one_operator

    model = one_operator("Reciprocal", (1, 4, 5, 5))
    entry = OPERATORS["", "Reciprocal"]
    monkeypatch.delitem(OPERATORS, ("", "Reciprocal"))
    with pytest.raises(LoweringError, match="Reciprocal 'node_y': there is no lowering for this operator"):
        lower(ir.from_proto(model))
    _, added = added_lines(blocks("diff")[0])
    written = dict(vars(unary))
    exec("\n".join(added[:-1]), written)
    monkeypatch.setitem(OPERATORS, ("", "Reciprocal"), replace(entry, lower=written["reciprocal"]))
    assert_floats_equal(model)


def test_refusal_by_example_is_what_convert_prints(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["part"], name="cut"),
        helper.make_node("Det", ["part"], ["y"], name="volume"),
    ]
    bounds = [numpy_helper.from_array(np.array([n]), name) for name, n in (("start", 0), ("end", 1000), ("axis", 0))]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    graph = helper.make_graph(nodes, "graph", [given], [result], bounds)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    command = [sys.executable, "-m", "edgeopt", "convert", "m.onnx", "m.tflite"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 9
    assert done.stderr in blocks("text")
    assert not (tmp_path / "m.tflite").exists()


def test_library_names_exist_when_the_example_uses_them() -> None:
    (example,) = blocks("python")
    used = set(re.findall(r"edgeopt\.(\w+)", example)) | set(re.findall(r"`edgeopt\.([a-z]\w*)`", section("Library")))
    assert {"build", "verify", "inspect"} <= used
    assert all(hasattr(edgeopt, name) for name in used)
    assert hasattr(EdgeoptError("x"), "hint")
    compile(example, "README.md", "exec")


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:edgeopt|targets|calibration|scripts)/[\w/.]*\w)`", README)))
)
def test_path_exists_when_the_readme_names_it(path: str) -> None:
    assert (ROOT / path).exists()


def _described_model() -> Mapping[str, object]:
    """Return what a lowering says of a model, by the function that every build calls."""
    from edgeopt.artifacts import LoweredModel
    from edgeopt.bundle.manifest import describe_model
    from edgeopt.inspection import Border, Inspection
    from edgeopt.settings import ParityLimits
    from edgeopt.target import discover_targets

    spec = next(iter(discover_targets().values()))
    inspection = Inspection("tflite", 1, {}, 0, 0, 0, 1.0, (), Border((), ()))
    lowered = LoweredModel(Path("model"), Border((), ()), (), "")
    return describe_model("x", spec, lowered, inspection, ParityLimits(), {})
