"""The command line as a user meets it: real processes, their output and exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import edgeopt
from edgeopt.recipe import load_recipe

ROOT = Path(edgeopt.__file__).parent.parent
COMMANDS = ["build", "sweep", "train", "search", "verify", "convert", "inspect", "targets", "recipes", "init", "doctor"]
HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "ai_edge_litert", "lightning_fabric", "onnxscript", "torch_pruning"}

RECIPE = """
[model]
factory = "net.py:make"
[model.inputs.image]
shape = [1, 3, 32, 32]
[calibration]
dataset = "mnist5k"
"""


def environment(**extra: str) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "100", **extra}


def run(arguments: Sequence[str], folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeopt", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(**extra), capture_output=True, text=True, timeout=120, check=False
    )


# ---------------------------------------------------------------- help


def test_help_lists_every_command_and_completion_when_asked(tmp_path: Path) -> None:
    done = run(["--help"], tmp_path)
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    assert "_EDGEOPT_COMPLETE=bash_source" in done.stdout
    assert "...\n" not in done.stdout.partition("Commands:")[2]  # every command's line is whole


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_unwrapped_when_asked_for_a_command(command: str, tmp_path: Path) -> None:
    done = run([command, "--help"], tmp_path)
    assert done.returncode == 0
    examples = done.stdout.partition("Examples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith("    ") for line in examples)
    assert any(line.startswith(f"    edgeopt {command}") for line in examples)
    assert "--json FILE" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["build", "--help"], ["recipes"]], ids=" ".join)
def test_light_commands_import_nothing_heavy_when_run(arguments: list[str], tmp_path: Path) -> None:
    probe = (
        "import sys; from edgeopt.cli.main import main; code = main(sys.argv[1:]); "
        f"heavy = sorted({HEAVY!r} & set(sys.modules)); print(heavy, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "[]"


def test_version_is_printed_when_asked(tmp_path: Path) -> None:
    done = run(["--version"], tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("edgeopt ")


# ---------------------------------------------------------------- exit codes


def test_exit_code_is_2_with_a_suggestion_when_the_command_is_misspelt(tmp_path: Path) -> None:
    done = run(["biuld"], tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'build'?" in done.stderr
    assert done.stdout == ""


def test_exit_code_is_2_when_nothing_is_asked(tmp_path: Path) -> None:
    assert run([], tmp_path).returncode == 2


def test_exit_code_is_2_when_quiet_and_verbose_are_both_given(tmp_path: Path) -> None:
    done = run(["build", "-v", "-q"], tmp_path)
    assert done.returncode == 2
    assert "contradict" in done.stderr


def test_exit_code_is_2_when_set_has_no_value(tmp_path: Path) -> None:
    done = run(["build", "mobilenet_v2", "--set", "train.epochs"], tmp_path)
    assert done.returncode == 2
    assert "expected key=value, got 'train.epochs'" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace("factory", "factry"), "my.toml: [model] unknown key 'factry'\n  hint: did you mean 'factory'?"),
        (
            RECIPE + "[[compress]]\nmethod = 'prune'\npruning_ratio = 'half'\n",
            "my.toml: [compress.prune] pruning_ratio: expected a number, got",
        ),
        (RECIPE + "[prune\n", "my.toml: not valid TOML: "),
    ],
)
def test_exit_code_is_3_and_the_error_printed_once_when_the_recipe_has_a_typo(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_text(text)
    done = run(["build", "my.toml"], tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(message)
    assert done.stderr.count("my.toml") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_exit_code_is_3_when_an_override_has_a_typo(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(RECIPE)
    done = run(["build", "my.toml", "--set", "compress.prune.prunning_ratio=0.3"], tmp_path)
    assert done.returncode == 3
    assert "[compress.prune] unknown key 'prunning_ratio' (an override, not in the file)" in done.stderr


def test_exit_code_is_3_when_the_recipe_is_not_there(tmp_path: Path) -> None:
    assert run(["build", "gone.toml"], tmp_path).returncode == 3


def test_build_says_so_when_it_takes_the_builtin_default(tmp_path: Path) -> None:
    done = run(["build", "--set", "nonsense=1"], tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("no recipe named and no edgeopt.toml here: building the built-in mnist5k\n")


def test_exit_code_is_14_when_json_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(["recipes", "--json", "file/out.json"], tmp_path)
    assert done.returncode == 14
    assert "cannot write file/out.json" in done.stderr


# ---------------------------------------------------------------- results


def test_recipes_prints_a_table_or_json_when_asked(tmp_path: Path) -> None:
    lines = run(["recipes"], tmp_path).stdout.splitlines()
    assert any(line.startswith("mobilenet_v2 ") and " MobileNetV2 with" in line for line in lines)
    assert not any(line.endswith(" ") for line in lines)
    done = run(["recipes", "--json", "-"], tmp_path)
    assert "mobilenet_v2" in json.loads(done.stdout)
    assert done.stderr == ""
    run(["recipes", "--json", "new/r.json"], tmp_path)
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == json.loads(done.stdout)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]


def test_targets_prints_every_fact_when_asked_for_json(tmp_path: Path) -> None:
    content = json.loads(run(["targets", "--json", "-"], tmp_path).stdout)
    assert {"arm64", "x86", "cuda"} <= set(content)
    assert content["arm64"]["model_file"] == "model.tflite"
    assert (Path(content["arm64"]["folder"]) / "target.toml").is_file()


def test_json_is_written_into_a_device_when_named(tmp_path: Path) -> None:
    assert run(["recipes", "--json", os.devnull], tmp_path).returncode == 0
    assert not Path(os.devnull).is_file()


def test_init_writes_a_recipe_that_loads_when_nothing_is_there(tmp_path: Path) -> None:
    done = run(["init"], tmp_path)
    assert done.returncode == 0
    assert "edgeopt build" in done.stdout
    loaded = load_recipe(tmp_path / "edgeopt.toml")
    assert loaded.recipe.name == "edgeopt"
    assert loaded.recipe.model.factory == "edgeopt.recipes.mnist5k:build"


def test_init_keeps_the_file_when_one_is_there_and_force_is_not_given(tmp_path: Path) -> None:
    recipe = tmp_path / "edgeopt.toml"
    recipe.write_text("mine")
    done = run(["init"], tmp_path)
    assert (done.returncode, recipe.read_text()) == (2, "mine")
    assert "hint: --force replaces it" in done.stderr
    assert run(["init", "--force"], tmp_path).returncode == 0
    assert recipe.read_text() != "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["edgeopt.toml"]


def test_tables_have_no_colours_when_they_are_not_on_a_terminal(tmp_path: Path) -> None:
    assert "\x1b[" not in run(["recipes"], tmp_path).stdout


@pytest.mark.parametrize("arguments", ["recipes", "recipes --json -", "--help", "build --help"])
def test_process_stops_quietly_when_the_reader_closes_the_pipe(arguments: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m edgeopt {arguments} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "141"
    assert done.stderr == ""


# ---------------------------------------------------------------- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed_when_a_shell_asks(shell: str, tmp_path: Path) -> None:
    done = run([], tmp_path, _EDGEOPT_COMPLETE=f"{shell}_source")
    assert "_EDGEOPT_COMPLETE=" in done.stdout
    assert "edgeopt" in done.stdout


def complete(words: str, folder: Path) -> list[str]:
    last = len(words.split(" ")) - 1
    done = run([], folder, _EDGEOPT_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(last))
    return done.stdout.split()


def test_completion_offers_recipes_and_files_when_a_recipe_is_typed(tmp_path: Path) -> None:
    assert complete("edgeopt build mob", tmp_path) == ["plain,mobilenet_v2", "file,mob"]


def test_completion_offers_targets_when_a_target_is_typed(tmp_path: Path) -> None:
    offered = complete("edgeopt build --target ", tmp_path)
    assert {"plain,arm64", "plain,x86", "plain,cuda", "plain,all"} <= set(offered)
    assert complete("edgeopt build --target x", tmp_path) == ["plain,x86"]


def test_completion_offers_commands_when_one_is_typed(tmp_path: Path) -> None:
    assert complete("edgeopt in", tmp_path) == ["plain,init", "plain,inspect"]
