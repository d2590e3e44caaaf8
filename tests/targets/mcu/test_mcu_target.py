"""Microcontrollers: what TFLite Micro takes, what it needs, and that a bundle says so; all of it in its interpreter."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_graphs import GraphWriter, channel_scales
from tflite_micro import runtime as tflite_micro
from tiny_project import RECIPE, ROOT, bundle_files, edgeopt_run, write_project

import edgeopt
from edgeopt.artifacts import QdqModel
from edgeopt.bundle.golden import load_golden
from edgeopt.cli.main import main
from edgeopt.devices.device import DeviceFacts, RunRequest, unfit
from edgeopt.errors import LoweringError, MissingDependencyError
from edgeopt.inspection import Border, TensorFacts
from edgeopt.native_stderr import held_back_stderr
from edgeopt.target import LoweringRequest, discover_targets
from edgeopt.targets.mcu.arena import smallest_arena
from edgeopt.targets.mcu.backend import lower
from edgeopt.targets.mcu.rules import OPERATORS, refusals
from edgeopt.tflite.inspect import FileOperator, FileTensor, TfliteFile
from edgeopt.tflite.lower import lower as lower_tflite
from edgeopt.verdict import checked_manifest, judge_model

BENCH_RECIPES = ROOT / "scripts" / "bench_recipes"
# What is judged is the device: a network trained for one epoch is far from its float one.
QUICK = [
    word
    for value in (
        *(f"{section}.{key}=1" for section in ("train", "compress.distill") for key in ("epochs", "threads")),
        "parity.min_sqnr_db=0",
    )
    for word in ("--set", value)
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("mcu") / "project")
    done = edgeopt_run(folder, "build", "--target", "arm64", "--target", "mcu")
    assert done.returncode == 0, done.stderr
    assert "bytes of RAM for tensors" in done.stdout
    return folder


@pytest.fixture(scope="module")
def bundle(project: Path) -> Path:
    return project / "build" / "edgeopt" / "mcu"


# ---------------------------------------------------------------- what TFLite Micro takes


def renamed(content: bytes, builtin: int) -> bytes:
    """Return a file whose first operator is another one."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    code = model.operatorCodes[model.subgraphs[0].operators[0].opcodeIndex]
    code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
    model.subgraphs[0].operators[0].builtinOptions = None
    model.subgraphs[0].operators[0].builtinOptionsType = 0
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def is_known(content: bytes) -> bool:
    """Return whether the interpreter finds a kernel for each operator, whatever that then says of its operands."""
    try:
        with held_back_stderr() as words:
            tflite_micro.Interpreter.from_bytes(content, arena_size=1 << 20)
    except AttributeError as error:  # of VAR_HANDLE, whose options the package reads in Python
        return "sharedName" in str(error)
    except RuntimeError:
        return b"Didn't find op for builtin opcode" not in b"".join(words)
    return True


def test_allow_list_is_that_of_the_interpreter(bundle: Path) -> None:
    content = (bundle / "model.tflite").read_bytes()
    names = {name: value for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    known = {name for name, value in names.items() if name != "CUSTOM" and is_known(renamed(content, value))}
    assert known == OPERATORS


def test_lower_refuses_by_name_when_an_operator_is_not_on_the_list(tmp_path: Path) -> None:
    graph = GraphWriter()
    gelu = graph.node("Gelu", graph.input("image", (1, 4)), name="bent")
    graph.output(graph.node("Erf", gelu, name="answer"))
    onnx.save(graph.model(20), tmp_path / "model.onnx")
    border = Border((TensorFacts("image", "float32", (1, 4)),), (TensorFacts("answer", "float32", (1, 4)),))
    with pytest.raises(LoweringError, match=r"- GELU 'bent': TFLite Micro has no such operator") as refused:
        lower(QdqModel(tmp_path / "model.onnx", "asymmetric"), border, LoweringRequest({}, {}, 1), tmp_path)
    assert "GELU" in {refusal.op_type for refusal in refused.value.refusals} <= {"GELU", "SIGN"}


def test_build_refuses_by_name_when_a_shape_is_dynamic(tmp_path: Path) -> None:
    folder = write_project(tmp_path / "project", recipe=RECIPE.replace("8, 8]", "8, 8]\ndynamic_batch = true"))
    done = edgeopt_run(folder, "build", "--target", "mcu")
    assert done.returncode == 9
    assert "input 'image': ? x 8 x 8 x 3 is dynamic" in done.stderr
    assert "dynamic_batch = false" in done.stderr


def test_refusals_name_the_operator_that_computes_its_shape() -> None:
    fixed = FileTensor("x", "float32", (2, 2), (), (), 0, False)
    found = FileTensor("found", "float32", (-1, 2), (), (), 0, False)
    behind = FileTensor("behind", "float32", (-1, 2), (), (), 0, False)
    operators = (
        FileOperator("found", "GATHER_ND", 1, (fixed,), (found,), 0),
        FileOperator("behind", "ABS", 1, (found,), (behind,), 0),
    )
    (refusal,) = refusals(TfliteFile(operators, {"x": fixed}, {"behind": behind}, 0))
    assert (refusal.op_type, refusal.node) == ("GATHER_ND", "found")


def test_lowering_gives_the_interpreters_own_words_when_a_kernel_refuses(bundle: Path) -> None:
    content = renamed((bundle / "model.tflite").read_bytes(), schema.BuiltinOperator.MUL)
    with pytest.raises(LoweringError, match=r"(?s)TFLite Micro does not run this network: .*NumInputs"):
        smallest_arena(content, 1)


# ---------------------------------------------------------------- what it needs


def memory(bundle: Path) -> dict[str, int]:
    return dict(json.loads((bundle / "bundle.json").read_text())["memory"])


def test_arena_is_little_more_than_is_recorded_and_16_bytes_less_are_too_few(bundle: Path) -> None:
    content, needed = (bundle / "model.tflite").read_bytes(), memory(bundle)["ram_bytes"]
    with held_back_stderr() as words:
        interpreter = tflite_micro.Interpreter.from_bytes(content, arena_size=needed)
        interpreter.print_allocations()
    recorded = re.search(rb"Arena allocation total (\d+) bytes", b"".join(words))
    assert recorded is not None
    assert int(recorded[1]) <= needed <= int(recorded[1]) + 64
    with held_back_stderr(), pytest.raises(RuntimeError):
        tflite_micro.Interpreter.from_bytes(content, arena_size=needed - 16)


def test_arena_is_found_when_the_interpreter_crashes_in_one_that_is_too_small() -> None:
    # Scales of many channels: the interpreter does not look whether it got the memory for them.
    graph = GraphWriter()
    scales = channel_scales(300)
    hidden = graph.quantized(graph.input("x", (1, 64)), 0.02, 0)
    operands = graph.weight((300, 64), scales), graph.bias(np.float32(0.02) * scales)
    graph.output(graph.quantized(graph.node("Gemm", hidden, *operands, transB=1), 0.5, 0))
    content = lower_tflite(ir.from_proto(graph.model()))
    needed = smallest_arena(content, 1)

    assert 300 * 8 < needed < 16_000  # a multiplier and a shift each
    with held_back_stderr():
        tflite_micro.Interpreter.from_bytes(content, arena_size=needed)
    crash = "import sys; from tflite_micro import runtime; "
    crash += "[runtime.Interpreter.from_bytes(sys.stdin.buffer.read(), arena_size=int(sys.argv[1]))]"
    sizes = range(needed - 16, needed // 2, -900)
    codes = {
        subprocess.run(
            [sys.executable, "-c", crash, str(size)], input=content, capture_output=True, check=False
        ).returncode
        for size in sizes
    }
    assert 0 not in codes
    assert -signal.SIGSEGV in codes  # else there is nothing to find a way round


def test_bundle_says_what_it_needs_of_ram_and_flash(bundle: Path) -> None:
    needed = memory(bundle)
    assert needed["flash_bytes"] == (bundle / "model.tflite").stat().st_size
    readme = (bundle / "README.md").read_text()
    assert f"- {needed['ram_bytes']:,} bytes of arena, {needed['flash_bytes']:,} bytes of model" in readme
    assert f"#define EDGEOPT_ARENA_BYTES {needed['ram_bytes']}" in (bundle / "firmware/edgeopt_model.h").read_text()
    assert json.loads((bundle.parent / "arm64" / "bundle.json").read_text())["memory"] is None


def budget(project: Path, **values: int) -> subprocess.CompletedProcess[str]:
    words = [word for name, value in values.items() for word in ("--set", f"targets.mcu.{name}={value}")]
    return edgeopt_run(project, "build", "--target", "mcu", *words, "--json", "-")


def test_build_is_within_its_budget_when_it_needs_no_byte_more(project: Path, bundle: Path) -> None:
    needed = memory(bundle)
    done = budget(project, max_ram_bytes=needed["ram_bytes"], max_flash_bytes=needed["flash_bytes"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundles"][0]["memory"] == needed


@pytest.mark.parametrize("name", ["ram", "flash"])
def test_build_fails_with_the_figures_and_leaves_the_old_bundle_when_over_the_budget(
    project: Path, bundle: Path, name: str
) -> None:
    before, needed = bundle_files(bundle), memory(bundle)[f"{name}_bytes"]
    done = budget(project, **{f"max_{name}_bytes": needed - 1})
    assert done.returncode == 19
    assert f"mcu needs {needed:,} bytes of {name}, max_{name}_bytes is {needed - 1:,}" in done.stderr
    assert "hint: prune more" in done.stderr
    assert bundle_files(bundle) == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("targets.mcu.max_ram_bytes=0", "'max_ram_bytes' must be at least 1, got 0"),
        ("targets.arm64.max_flash_bytes=9", "only microcontrollers have a budget for memory"),
        ("targets.mcu.max_rom_bytes=9", "did you mean"),
    ],
)
def test_recipe_is_refused_when_a_budget_makes_no_sense(
    project: Path, setting: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["build", "--target", "mcu", "--set", setting]) == 3
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- the verdict


def test_model_is_the_file_of_arm64(bundle: Path) -> None:
    assert (bundle / "model.tflite").read_bytes() == (bundle.parent / "arm64" / "model.tflite").read_bytes()


def test_verify_runs_in_tflite_micro_and_finds_its_kernels_answers(bundle: Path) -> None:
    report = edgeopt.verify(bundle)
    assert report.passed, report.failures
    assert report.runtime.startswith("tflite-micro ")
    assert [output.built_in_steps for output in report.outputs] == [0]
    assert not report.steps_judged


def test_verify_takes_another_runtime_when_it_is_asked_for(bundle: Path) -> None:
    report = edgeopt.verify(bundle, runtime="ai-edge-litert")
    assert report.passed, report.failures
    assert report.runtime.startswith("ai-edge-litert ")
    assert edgeopt.verify(bundle.parent / "arm64", runtime="tflite-micro").outputs[0].built_in_steps == 0


def test_verify_says_no_when_an_answer_is_not_the_reference_kernels(bundle: Path) -> None:
    manifest, golden = checked_manifest(bundle), load_golden(bundle / "golden.npz")
    expected = golden["built_in/logits"].astype(np.int64)
    golden["built_in/logits"] = np.where(expected > 0, expected - 2, expected + 2).astype(np.int8)
    report = judge_model(bundle / "model.tflite", manifest, golden)
    assert not report.passed
    assert "2 steps from TFLite's built-in kernels, limit 1" in report.failures[0]
    del golden["built_in/logits"]
    (failure,) = judge_model(bundle / "model.tflite", manifest, golden).failures
    assert failure == "there are no answers of TFLite's reference kernels to compare with"


def test_device_test_in_the_bundle_runs_in_tflite_micro(bundle: Path) -> None:
    done = subprocess.run([sys.executable, bundle / "run_parity.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "in tflite-micro" in done.stdout


def test_nothing_else_is_taken_for_it_when_tflite_micro_is_not_installed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tflite_micro", None)
    with pytest.raises(MissingDependencyError, match=r"pip install tflite-micro"):
        edgeopt.verify(bundle)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeopt\[mcu\]'"):
        smallest_arena((bundle / "model.tflite").read_bytes(), 1)


def test_device_is_refused_before_anything_is_copied_when_it_has_no_tflite_micro(bundle: Path) -> None:
    board = DeviceFacts(
        "board", False, "aarch64", "", 4, (), None, "", "3.11", {"numpy": "2", "ai-edge-litert": "2.3.0"}, None
    )
    (reason,) = unfit(board, checked_manifest(bundle), RunRequest())
    assert "install tflite-micro" in reason
    assert not list(unfit(board, checked_manifest(bundle), RunRequest("ai-edge-litert")))


def test_all_leaves_out_microcontrollers(project: Path) -> None:
    done = edgeopt_run(project, "build", "--target", "all", "--json", "-", "--no-verify")
    assert done.returncode == 0, done.stderr
    built = [bundle["target"] for bundle in json.loads(done.stdout)["bundles"]]
    assert built == [name for name, spec in discover_targets().items() if not spec.microcontroller]
    assert "mcu" not in built


# ---------------------------------------------------------------- real networks


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mnist5k", "ds_cnn"])
def test_network_is_built_and_answers_as_the_reference_kernels(tmp_path: Path, recipe: str) -> None:
    reference, quick = (recipe, QUICK) if recipe == "mnist5k" else (str(BENCH_RECIPES / f"{recipe}.toml"), [])
    done = edgeopt_run(tmp_path, "build", reference, "--target", "mcu", *quick)
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "build" / recipe / "mcu"
    report = edgeopt.verify(bundle)
    assert report.passed, report.failures
    assert report.outputs[0].built_in_steps in (0, 1)  # 1 at ties of the fully connected layer, see target.toml
    assert 1_000 < memory(bundle)["ram_bytes"] < 64_000
