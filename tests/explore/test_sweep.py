"""Sweeps as a user runs them: on a Ray of this machine, and on a cluster by its address."""

import csv
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ray_cluster import is_alive, ray_cluster, wait_for
from tiny_project import NET, RECIPE, command, edgeopt_run, environment, write_project

from edgeopt.cli.main import main
from edgeopt.errors import MissingDependencyError
from edgeopt.explore.pool import PoolSettings, ray_pool

# What becomes of a trial is said by an argument of its network. The file beside the recipe says that all is mended.
FATEFUL_NET = NET.replace(
    "def build():",
    """
import os, pathlib, signal, time
HERE = pathlib.Path(FOLDER)

def build(fate="well"):
    with (HERE / f"{fate}.pids").open("a") as stream:
        stream.write(f"{os.getpid()}\\n")
    attempt = len((HERE / f"{fate}.pids").read_text().split())
    if not (HERE / "mended").exists():
        if fate == "doomed" or (fate == "killed" and attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "broken":
            raise ValueError("this network is broken")
    if fate == "slow":
        time.sleep(600)
""",
)


NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:  # a cluster that not everybody may use
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with ray_cluster(tmp_path_factory.mktemp("ray"), num_cpus=2) as address:
            yield address


@pytest.fixture
def fateful(tmp_path: Path) -> Path:
    net = FATEFUL_NET.replace("FOLDER", repr(str(tmp_path)))
    write_project(tmp_path / "project", recipe=RECIPE + "[latency]\ncompare = false\n", net=net)
    return tmp_path


def sweep(folder: Path, address: str, fates: Sequence[str], *more: str) -> subprocess.CompletedProcess[str]:
    grid = f"model.arguments.fate={','.join(fates)}"
    arguments = ["sweep", "project/edgeopt.toml", "--grid", grid, "--address", address, "--cpus", "1", "--retries", "1"]
    return edgeopt_run(folder, *arguments, "--out", "out", *more)


def trials(folder: Path) -> dict[str, dict[str, object]]:
    content = json.loads((folder / "out/sweep.json").read_text())
    return {trial["result"]["overrides"]["model.arguments.fate"]: trial for trial in content["trials"]}


def num_attempts(folder: Path, fate: str) -> int:
    return len((folder / f"{fate}.pids").read_text().split())


def test_sweep_tries_killed_trials_again_and_goes_on_when_others_break(fateful: Path, address: str) -> None:
    fates = ["well", "killed", "doomed", "broken"]
    done = sweep(fateful, address, fates)
    assert done.returncode == 1, done.stderr
    assert "2 of 4 trials failed" in done.stderr
    assert "dashboard: http://127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr
    assert "raylet" not in done.stderr

    found = trials(fateful)
    assert {fate: found[fate]["result"]["status"] for fate in fates} == {
        "well": "ok", "killed": "ok", "doomed": "failed", "broken": "failed",
    }  # fmt: skip
    assert {fate: found[fate]["attempts"] for fate in fates} == {"well": 1, "killed": 2, "doomed": 2, "broken": 1}
    assert "this network is broken" in found["broken"]["result"]["error"]
    assert "died" in found["doomed"]["result"]["error"]
    killed, well = (found[fate]["result"]["figures"] for fate in ("killed", "well"))
    assert killed["model_bytes"] == well["model_bytes"]
    assert (fateful / "out" / found["well"]["result"]["bundle"] / "model.tflite").is_file()
    with (fateful / "out/sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model.arguments.fate"] for row in rows] == fates
    assert rows[0]["model_bytes"] == str(well["model_bytes"])
    assert "this network is broken" in done.stdout
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:3]] == [
        ["arm64", "well", "ok"], ["arm64", "killed", "ok"],
    ]  # fmt: skip

    # The same command again, with what broke two of them mended.
    ran = {fate: num_attempts(fateful, fate) for fate in fates}
    (fateful / "mended").touch()
    again = sweep(fateful, address, fates)
    assert again.returncode == 0, again.stderr
    assert "4 trials, 2 of them known from before" in again.stdout
    assert {fate: num_attempts(fateful, fate) > ran[fate] for fate in fates} == {
        "well": False, "killed": False, "doomed": True, "broken": True,
    }  # fmt: skip

    # Once more: nothing is missing, so that no Ray is needed.
    known = sweep(fateful, NOWHERE, fates)
    assert known.returncode == 0, known.stderr
    assert known.stdout.splitlines()[0] == again.stdout.splitlines()[0]
    assert known.stdout.endswith("4 trials, 4 of them known from before; bundles and tables in out\n")


def test_sweep_keeps_what_ended_when_interrupted(fateful: Path, address: str) -> None:
    grid = "model.arguments.fate=well,slow"
    arguments = ["sweep", "project/edgeopt.toml", "--grid", grid, "--address", address, "--cpus", "2", "--out", "out"]
    process = subprocess.Popen(
        command(*arguments), cwd=fateful, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for((fateful / "slow.pids").exists, 120)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith("interrupted; what ended is in out; the same command again goes on\n")
    assert list(trials(fateful)) == ["well"]
    worker = int((fateful / "slow.pids").read_text())
    wait_for(lambda: not is_alive(worker), 30)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--grid", "prune.rato=1"], 3, "unknown key 'prune'"),
        (["--grid", "parity.min_cosine=0.5,half"], 3, "[parity] min_cosine: expected a number, got "),
        (["--grid", "train.epochs="], 2, "expected KEY=a,b,c"),
        (["--grid", "train.epochs=1", "--set", "train.epochs=2"], 2, "train.epochs is given twice"),
        (["--grid", "train.epochs=1,2", "--target", "arm46"], 10, "did you mean 'arm64'?"),
        (["--grid", "train.epochs=1,2", "--jobs", "100", "--cpus", "100"], 2, "need 10000, and this machine has"),
        (["--grid", "train.epochs=1:3"], 2, "a grid has single values"),
        (["--search", "3"], 2, "a sweep needs --grid"),
        (["--search", "3", "--grid", "train.epochs=1"], 2, "go together"),
        ([], 2, "a sweep needs --grid"),
    ],
)
def test_sweep_refuses_before_anything_starts_when_asked_for_nonsense(
    arguments: list[str], code: int, message: str, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(project / "edgeopt.toml"), *arguments, "--out", str(project / "out")]) == code
    assert message in capfd.readouterr().err
    assert not (project / "out").exists()


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [(NOWHERE, 15, "no Ray cluster answers at 127.0.0.1:1: [Errno 111]"), ("here", 2, "expected auto, host:port or")],
)
def test_sweep_says_so_at_once_when_no_cluster_is_at_the_address(
    address: str, code: int, message: str, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--grid", "export.num_samples=1,2", "--address", address, "--out", str(project / "out")]
    assert main(["sweep", str(project / "edgeopt.toml"), *arguments]) == code
    assert message in capfd.readouterr().err


def test_sweep_refuses_when_no_node_of_the_cluster_has_so_many_cpus(address: str, project: Path) -> None:
    asked = ["--grid", "export.num_samples=1,2", "--address", address, "--cpus", "64"]
    done = edgeopt_run(project, "sweep", "edgeopt.toml", *asked)
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith("and no node of the cluster has more than 2\n  hint: --cpus 2\n")


def test_sweep_names_the_extra_when_ray_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingDependencyError, match=r"pip install 'edgeopt\[sweep\]'"),
        ray_pool(PoolSettings(), token_file=tmp_path / "token"),
    ):
        pass


def test_sweep_of_mnist5k_runs_on_a_ray_of_this_machine_when_no_address_is_given(tmp_path: Path) -> None:
    """Targets, ratios and schemes, with networks that are trained too little to be of use."""
    short = ["train.epochs=1", "train.threads=1", "compress.distill.epochs=1", "compress.distill.threads=1"]
    done = edgeopt_run(
        tmp_path, "sweep", "mnist5k", "--target", "arm64", "--target", "x86",
        "--grid", "compress.prune.pruning_ratio=0.5,0.8", "--grid", "quantize.precision=int8,dynamic",
        *(part for value in short for part in ("--set", value)), "--json", "sweep.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "dashboard: http://127.0.0.1:" in done.stderr
    found = [trial["result"] for trial in json.loads((tmp_path / "sweep.json").read_text())["trials"]]
    assert len(found) == 8
    assert {trial["status"] for trial in found} <= {"ok", "refused"}
    assert all(trial["figures"]["metric"] > 0.5 for trial in found)
    ratio, precision = "compress.prune.pruning_ratio", "quantize.precision"
    bytes_of = {
        (trial["target"], trial["overrides"][ratio], trial["overrides"][precision]): trial["figures"]["model_bytes"]
        for trial in found
    }
    for target in ("arm64", "x86"):
        for kind in ("int8", "dynamic"):
            assert bytes_of[target, 0.8, kind] < bytes_of[target, 0.5, kind]
    # One teacher for eight trials, and one student for each ratio.
    cache = tmp_path / "build/sweep/.cache"
    assert [len(list(cache.glob(f"{stage}-*"))) for stage in ("train", "prune", "distill")] == [1, 2, 2]
    assert not (tmp_path / "build/sweep/.ray-token").exists()
