"""scripts/bench: limits and tables by hand, and one run on a network so small that only counts mean anything."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_project import ROOT, environment

SCRIPTS = ROOT / "scripts"
if not (SCRIPTS / "bench_figures.py").is_file():
    pytest.skip("scripts/ is not part of an installed edgeopt", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from bench_cli import main  # noqa: E402
from bench_figures import Figure, Goal, as_json, parse_goal, read_goals, table, verdict  # noqa: E402
from bench_lowering import chain  # noqa: E402
from bench_network import NotMeasured, as_taken  # noqa: E402
from bench_node_cases import write_case  # noqa: E402
from bench_parity import agreement, steps_apart  # noqa: E402
from bench_peer_cases import answers_match, judge_apart  # noqa: E402
from bench_peers import find_peers  # noqa: E402
from bench_size import lines_of, size_figures  # noqa: E402
from bench_timing import interleaved, ratio, run_watched  # noqa: E402

from edgeopt.samples import Sample  # noqa: E402


@pytest.mark.parametrize(
    ("text", "goal"),
    [("<= 30 s", Goal("<=", 30.0, "s")), (">= 1.6 x", Goal(">=", 1.6, "x")), (">= 98 %", Goal(">=", 98.0, "%"))],
)
def test_parse_goal_reads_comparison_value_and_unit(text: str, goal: Goal) -> None:
    assert parse_goal(text) == goal
    assert str(goal) == text


@pytest.mark.parametrize("text", ["", "30 s", "< 30 s", "<= s", "<= 30", "<=30 s", "<= 30 s or so", "<= -1 s"])
def test_parse_goal_refuses_when_the_form_is_another(text: str) -> None:
    with pytest.raises(ValueError, match="a goal is"):
        parse_goal(text)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("<= 2 s", 2.0, "met"),
        ("<= 2 s", 2.001, "missed"),
        (">= 98 s", 98.0, "met"),
        (">= 98 s", 97.99, "missed"),
        ("<= 2 s", math.nan, "missed"),
        (">= 2 s", math.nan, "missed"),
        ("<= 2 s", None, "not measured"),
    ],
)
def test_verdict_judges_a_value_by_its_goal(text: str, value: float | None, expected: str) -> None:
    assert verdict(Figure("build", "net", "time", value, "s"), parse_goal(text)) == expected


def test_verdict_is_empty_when_there_is_no_goal() -> None:
    assert verdict(Figure("build", "net", "time", 1.0, "s"), None) == ""


def test_verdict_refuses_when_units_differ() -> None:
    with pytest.raises(ValueError, match="in s, its goal in GB"):
        verdict(Figure("build", "net", "time", 1.0, "s"), parse_goal("<= 2 GB"))


def test_goals_are_found_by_section_network_and_name() -> None:
    assert read_goals()["build", "efficientnet_lite0", "fresh build, wall time"] == Goal("<=", 30.0, "s")


def test_table_shows_value_limit_verdict_and_why_a_figure_is_missing() -> None:
    figures = [
        Figure("build", "net", "time", 12.3456, "s", "load 1"),
        Figure("parity", "net", "worst", 3, "steps"),
        Figure("latency", "net", "peer", None, "x", "no environment given"),
    ]
    goals = {("build", "net", "time"): Goal("<=", 30.0, "s"), ("latency", "net", "peer"): Goal("<=", 1.0, "x")}
    lines = [line.split() for line in table(figures, goals).splitlines()]
    assert lines[1] == ["build", "net", "time", "12.346", "s", "<=", "30", "s", "met", "load", "1"]
    assert lines[2] == ["parity", "net", "worst", "3", "steps"]
    assert lines[3] == ["latency", "net", "peer", "-", "<=", "1", "x", "not", "measured", "no", "environment", "given"]


def test_json_holds_no_nan() -> None:
    figures = [Figure("agreement", "net", "SQNR", math.nan, "dB")]
    content = as_json(figures, {("agreement", "net", "SQNR"): Goal(">=", 1.0, "dB")}, {"load": "0"})
    assert json.loads(json.dumps(content, allow_nan=False))["figures"][0]["value"] is None
    assert content["figures"][0]["verdict"] == "missed"


def test_steps_apart_compares_signed_with_unsigned_and_dequantized() -> None:
    signed = {"scale": 0.5, "zero_point": -3, "integer_dtype": "int8"}
    unsigned = {"scale": 0.5, "zero_point": 125, "integer_dtype": "uint8"}
    integers = np.array([-128, -3, 127], np.int8)
    reals = np.array([-62.5, 0.5, 65.0], np.float32)
    assert steps_apart(integers, signed, reals, unsigned).tolist() == [0, 1, 0]


def test_steps_apart_refuses_when_scales_differ() -> None:
    first, second = ({"scale": scale, "zero_point": 0, "integer_dtype": "int8"} for scale in (0.5, 0.25))
    with pytest.raises(NotMeasured, match="no common step"):
        steps_apart(np.zeros(1, np.int8), first, np.zeros(1, np.int8), second)


def test_as_taken_transposes_and_quantizes() -> None:
    array = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    facts = {"layout": "NHWC", "dtype": "int8", "scale": 2.0, "zero_point": -1}
    taken = as_taken(array, "NCHW", facts)
    assert taken.dtype == np.int8
    assert taken[0, 0, 1].tolist() == [-1, 1]  # 1 / 2 and 5 / 2, each rounded to even


def test_agreement_counts_classes_and_names_the_worst_sample() -> None:
    samples = [Sample(name, {}) for name in ("good", "bad")]
    reference = [{"logits": np.array([[1.0, 2.0]])}, {"logits": np.array([[3.0, 1.0]])}]
    actual = [{"logits": np.array([[1.0, 2.0]])}, {"logits": np.array([[1.0, 3.0]])}]
    same, noise = agreement("net", "x86", samples, reference, actual)
    assert same.value == 50.0
    assert noise.value == pytest.approx(10 * math.log10(10 / 8))
    assert noise.remark == "sample bad"


def test_interleaved_takes_turns_in_both_orders() -> None:
    calls: list[str] = []
    taken = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, repeats=2)
    assert calls == [*"ab", *"aabb", *"bbaa"]
    assert len(taken["a"].wall) == len(taken["b"].cpu) == 2
    assert ratio(taken["a"], taken["a"]) == 1.0


def test_run_watched_sees_the_memory_of_a_child() -> None:
    child = "import time; data = bytearray(80_000_000); time.sleep(0.3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); sys.exit(7)"
    finished = run_watched([sys.executable, "-c", parent])
    assert finished.exit_code == 7
    assert finished.seconds > 0.3
    if Path("/proc/self/status").exists():
        assert finished.peak_bytes is not None
        assert 80_000_000 < finished.peak_bytes < 400_000_000


@pytest.mark.parametrize("length", [10, 100])
def test_chain_has_the_nodes_that_were_asked_for_when_checked(length: int) -> None:
    model = chain(length)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) == length


def test_chain_refuses_when_blocks_do_not_fill_it() -> None:
    with pytest.raises(ValueError, match="multiple of 10 nodes, got 12"):
        chain(12)


def test_lowering_is_timed_in_a_process_of_its_own(tmp_path: Path) -> None:
    onnx.save(chain(20), tmp_path / "chain.onnx")
    command = [sys.executable, SCRIPTS / "bench_lowering.py", tmp_path / "chain.onnx", tmp_path / "chain.tflite", "2"]
    taken = json.loads(subprocess.run(command, env=environment(), capture_output=True, check=True).stdout)
    assert len(taken["seconds"]) == len(taken["cpu_seconds"]) == 2
    assert taken["bytes"] == (tmp_path / "chain.tflite").stat().st_size
    assert taken["peak_bytes"] is None or taken["peak_bytes"] > taken["imported_bytes"] > 10_000_000


def test_find_peers_refuses_when_an_environment_has_none() -> None:
    with pytest.raises(NotMeasured, match="neither litert-torch nor onnx2tf"):
        find_peers([Path(sys.executable)])


@pytest.mark.parametrize(
    ("actual", "matches"),
    [
        (np.arange(6).reshape(1, 2, 3), True),
        (np.arange(6, dtype=np.float32).reshape(2, 3), True),
        (np.arange(6).reshape(1, 2, 3).transpose(0, 2, 1), True),
        (np.arange(6).reshape(1, 3, 2), False),
        (np.arange(1, 7).reshape(1, 2, 3), False),
    ],
)
def test_peer_is_forgiven_layout_and_width_but_not_numbers(actual: np.ndarray, matches: bool) -> None:
    assert answers_match(np.arange(6).reshape(1, 2, 3), actual, {"rtol": 1e-3, "atol": 1e-7}) is matches


def test_peer_is_given_a_case_in_the_oldest_opset_that_means_the_same(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["s"]), helper.make_node("Reshape", ["s", "shape"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [6])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [given], [result]), opset_imports=[helper.make_opsetid("", 20)]
    )
    arrays = [np.ones((2, 3), np.float32)], [np.ones(6, np.float32)]
    write_case(tmp_path / "case", model, {"x": arrays[0][0]}, SimpleNamespace(data_sets=[arrays], rtol=0.5, atol=0.25))
    assert [opset.version for opset in onnx.load(tmp_path / "case/model.onnx").opset_import] == [19]  # Reshape's
    with np.load(tmp_path / "case/case.npz") as stored:
        assert {name: stored[name].shape for name in stored.files} == {
            "input/x": (2, 3), "output/y": (6,), "rtol": (), "atol": ()
        }  # fmt: skip


def test_peer_that_ends_its_process_is_told_from_one_that_answers(tmp_path: Path) -> None:
    assert judge_apart(tmp_path / "absent", 30.0) == {"verdict": "not converted", "reason": "the process ended"}


def test_lines_are_counted_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/one.py").write_text('"""One."""\n\nX = 1\n')
    (tmp_path / "two.txt").write_text("no code\n")
    assert lines_of(tmp_path) == {"below/one.py": 3}


def test_bench_explains_how_to_make_the_peer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "pip install litert-torch ai-edge-quantizer" in capsys.readouterr().out


def test_bench_counts_on_a_tiny_network(project: Path, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    recipe = str(project / "edgeopt.toml")
    command = ["footprint", "parity", "--network", recipe, "--samples", "4", "--json", str(report)]
    run = subprocess.run(
        [sys.executable, SCRIPTS / "bench", *command],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    figures = {figure["name"]: figure for figure in json.loads(report.read_text())["figures"]}
    assert figures["output values equal"]["remark"].startswith("16 of 16 values on 4 samples")
    assert figures["worst difference"]["value"] == 0
    assert figures["arm64: MACs on integers"]["value"] == 100.0
    assert "output values equal" in run.stdout


def test_lowering_keeps_its_goals_of_size() -> None:
    goals = read_goals()
    verdicts = {figure.name: (figure.shown, verdict(figure, goals.get(figure.key))) for figure in size_figures()}
    assert {name: judged for name, (_, judged) in verdicts.items()} == {"all files": "met", "longest file": "met"}, (
        verdicts
    )
