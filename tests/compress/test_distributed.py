"""Real processes, real gloo: one ``torchrun`` of all cases, and one recipe that is killed and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_cases import CASES, context_of, linear, sparse_source, weights_after
from safetensors.torch import load_file
from small_nets import noisy_patterns

from edgeopt import training_run
from edgeopt.compress.finetune import finetune
from edgeopt.compress.processes import check_cores
from edgeopt.errors import RecipeError, UsageError
from edgeopt.recipe import load_recipe
from edgeopt.steps import FinetuneSettings

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do every case in two processes, and return their folders ``0`` and ``1``."""
    folder = tmp_path_factory.mktemp("together")
    command = [*TORCHRUN, str(HERE / "distributed_cases.py"), str(folder)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def found(together: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((together / "0" / "found.json").read_text(encoding="utf-8"))
    return content


# ---------------------------------------------------------------- the same result as one process


@pytest.mark.parametrize("name", CASES)
def test_train_gives_the_weights_of_one_process_when_there_are_two(name: str, together: Path, tmp_path: Path) -> None:
    alone = weights_after(name, tmp_path / "alone")
    first, second = (load_file(together / rank / name / "weights.safetensors") for rank in "01")

    for key, tensor in alone.items():
        torch.testing.assert_close(first[key], tensor, rtol=2e-3, atol=2e-4)
        assert torch.equal(first[key], second[key])


def test_fsdp_and_tensor_parallel_hold_a_part_of_the_parameters_when_there_are_two(together: Path) -> None:
    for rank in "01":
        share = json.loads((together / rank / "found.json").read_text(encoding="utf-8"))["share"]
        assert share == {"fsdp": 0.5, "tensor_parallel": pytest.approx(0.5, abs=0.01)}


def test_ddp_trains_control_flow_when_processes_take_different_branches(together: Path) -> None:
    losses = found(together)["branching"]

    assert isinstance(losses, list)
    assert losses[-1] < losses[0]


def test_all_processes_stop_at_once_when_the_loss_of_one_is_nan(together: Path) -> None:
    assert "epoch 2, step 3: the loss is nan; the checkpoint of epoch 1 is kept" in str(found(together)["nan"])
    assert found(together)["kept"] == ["checkpoint.pt"]


def test_ddp_keeps_zeros_and_fsdp_refuses_when_a_weight_is_sparse(together: Path, tmp_path: Path) -> None:
    weight = load_file(together / "0" / "finetuned" / "weights.safetensors")["1.weight"]
    (tmp_path / "alone").mkdir()
    source = sparse_source(tmp_path / "sparse")
    finetune(context_of(linear, source), FinetuneSettings(epochs=2, threads=1), tmp_path / "alone")
    alone = load_file(tmp_path / "alone" / "weights.safetensors")["1.weight"]

    assert not weight[:, ::2].any()
    torch.testing.assert_close(weight, alone, rtol=2e-3, atol=2e-4)
    assert "strategy = \"fsdp\" cannot keep the constraint of layer '1'" in str(found(together)["constrained"])


# ---------------------------------------------------------------- edgeopt train: interrupted, killed, taken up


RECIPE = """
[model]
factory = "net.py:make"
outputs = ["logits"]
[model.inputs.image]
shape = [1, 1, 8, 8]
[calibration]
dataset = "arrays"
num_samples = 8
num_held_out = 100
[calibration.options]
train = "train.npz"
calibration = "held_out.npz"
held_out = "held_out.npz"
[train]
epochs = 40
batch_size = 50
validation_share = 0.0
devices = 2
oversubscribe = true # a machine of one core tests it too
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text("from distributed_cases import linear as make\n", encoding="utf-8")
    for split, data in zip(("train", "held_out"), noisy_patterns(), strict=True):
        np.savez(tmp_path / f"{split}.npz", image=data.images, labels=data.labels)
    (tmp_path / "net.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path / "net.toml"


def start(recipe: Path) -> subprocess.Popen[str]:
    """Start a training in two processes, in a session of its own as a shell does, and wait until both train."""
    command = [sys.executable, "-m", "edgeopt", "train", str(recipe), "--out", str(recipe.parent / "out")]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    before = saved_at(recipe)
    process = subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, start_new_session=True)
    while saved_at(recipe) == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


def saved_at(recipe: Path) -> list[int]:
    """Return when the checkpoint was written, if there is one."""
    return [path.stat().st_mtime_ns for path in recipe.parent.glob("out/.cache/.train-*.work/checkpoint.pt")]


def session_of(process: subprocess.Popen[str], containing: bytes = b"") -> list[int]:
    """Return the processes of a session, besides the one that leads it, by what is on their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
            if session == process.pid != int(entry.name) and containing in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def gone(process: subprocess.Popen[str]) -> bool:
    """Return whether a session is empty, now or within five seconds."""
    deadline = time.monotonic() + 5
    while session_of(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not session_of(process)


def test_train_goes_on_in_one_process_when_two_were_interrupted_and_killed(
    recipe: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = start(recipe)
    os.killpg(interrupted.pid, signal.SIGINT)  # Ctrl-C reaches every process of the terminal
    _, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, errors
    assert "Traceback" not in errors
    assert gone(interrupted)

    killed = start(recipe)
    (worker,) = session_of(killed, b"spawn_main")
    os.kill(worker, signal.SIGKILL)
    asked = time.monotonic()
    _, errors = killed.communicate(timeout=60)
    assert time.monotonic() - asked < 20
    assert killed.returncode == 6, errors
    assert "[train] process 1 of the training's 2 was killed by SIGKILL\n  hint: run the same command again" in errors
    assert "train goes on after epoch" in errors
    assert gone(killed)

    monkeypatch.syspath_prepend(str(HERE))
    with caplog.at_level("INFO", "edgeopt"):
        result = training_run.train(load_recipe(recipe, {"train.devices": 1}), out=recipe.parent / "out")
    assert "train goes on after epoch" in caplog.text
    assert result is not None
    report = result.reports["train"]
    assert isinstance(report, dict)
    assert (report["num_epochs"], report["num_processes"]) == (40, 1)
    assert report["held_out_score"] > 0.8


def test_train_of_torchrun_is_found_by_a_build_when_it_is_done(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, report = recipe.parent / "out", recipe.parent / "report.json"
    command = [*TORCHRUN, "-m", "edgeopt", "train", str(recipe), "--set", "train.epochs=2", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [*command, "--json", str(report)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out samples") == 1  # the first process speaks
    assert json.loads(report.read_text(encoding="utf-8"))["reports"]["train"]["num_processes"] == 2

    found = training_run.train(load_recipe(recipe, {"train.epochs": 2, "train.devices": 1}), out=out)
    assert found is not None
    assert [stage.cached for stage in found.stages] == [True]


# ---------------------------------------------------------------- refusals


def test_check_cores_refuses_when_there_are_more_processes_than_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(RecipeError, match=f"{cores + 1} processes are to train, but there are {cores} cores") as error:
        check_cores(cores + 1, oversubscribe=False)
    assert f"set devices = {cores}" in str(error.value.hint)
    check_cores(cores, oversubscribe=False)
    check_cores(cores + 1, oversubscribe=True)


def test_train_refuses_before_it_starts_when_devices_are_more_than_cores(recipe: Path) -> None:
    asked = {"train.devices": 5000, "train.oversubscribe": False}
    with pytest.raises(RecipeError, match="5000 processes are to train"):
        training_run.train(load_recipe(recipe, asked), out=recipe.parent / "out")


def test_train_refuses_when_a_recipe_trains_nothing(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text[: text.index("[train]")], encoding="utf-8")
    with pytest.raises(UsageError, match="trains nothing"):
        training_run.train(load_recipe(recipe), out=recipe.parent / "out")
