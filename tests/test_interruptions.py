"""Builds that are killed or interrupted go on and end with the same bytes as one that was left alone."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from tiny_project import COMPRESSION, RECIPE, bundle_files, command, edgeopt_run, environment, write_project

EPOCHS = 6
LONGER = RECIPE + COMPRESSION.replace("epochs = 2", f"epochs = {EPOCHS}")

# Lines on stderr to kill at, in the order in which they come; a line with an epoch is in the middle of its stage.
MOMENTS = [
    "recipe ...", "train ...", "train epoch 2/", "prune ...", "distill ...", "distill epoch 3/", "export ...",
    "calibrate ...", "quantize-asymmetric ...", "lower-arm64 ...", "reference ...", "verify-arm64 ...",
    "bundle-arm64 ...",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_project(tmp_path_factory.mktemp("undisturbed") / "project", recipe=LONGER)
    done = edgeopt_run(folder, "build")
    assert done.returncode == 0, done.stderr
    return bundle_files(folder / "build" / "edgeopt" / "arm64")


def stopped_at(folder: Path, moment: str, number: int) -> tuple[int, str]:
    """Build, send a signal when a line comes, and return the exit code and what was printed until the end."""
    process = subprocess.Popen(
        command("build"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if moment in line:
            os.kill(process.pid, number)
            break
    seen += process.communicate(timeout=120)[1] or ""
    assert moment in seen, seen
    return process.returncode, seen


@pytest.mark.slow
def test_build_ends_with_the_same_bytes_when_it_was_killed_at_every_stage(
    project: Path, undisturbed: dict[str, bytes]
) -> None:
    (project / "edgeopt.toml").write_text(LONGER)
    bundle = project / "build" / "edgeopt" / "arm64"
    log = ""
    for moment in MOMENTS:
        code, seen = stopped_at(project, moment, signal.SIGKILL)
        # The stages from calibrate on may be over sooner than a signal arrives.
        assert code == -signal.SIGKILL or (code == 0 and MOMENTS.index(moment) >= MOMENTS.index("calibrate ..."))
        log += seen
        assert not bundle.exists() or bundle_files(bundle) == undisturbed
    for stage in ("train", "distill"):
        resumed = re.search(f"{stage} goes on after epoch (\\d+)", log)
        assert resumed is not None, f"{stage} did not resume"
        assert 1 <= int(resumed[1]) <= EPOCHS
    done = edgeopt_run(project, "build")
    assert done.returncode == 0, done.stderr
    assert bundle_files(bundle) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["train epoch 2/", "export ...", "bundle-arm64 ..."])
def test_build_exits_with_130_and_goes_on_when_ctrl_c_comes(
    project: Path, undisturbed: dict[str, bytes], moment: str
) -> None:
    (project / "edgeopt.toml").write_text(LONGER)
    code, seen = stopped_at(project, moment, signal.SIGINT)
    assert code == 130 or (code == 0 and moment.startswith("bundle")), seen
    assert "Traceback" not in seen
    done = edgeopt_run(project, "build")
    assert done.returncode == 0, done.stderr
    assert bundle_files(project / "build" / "edgeopt" / "arm64") == undisturbed


@pytest.mark.slow
def test_two_builds_end_with_the_same_bytes_when_they_run_at_once(project: Path, undisturbed: dict[str, bytes]) -> None:
    (project / "edgeopt.toml").write_text(LONGER)
    builds = [
        subprocess.Popen(command("build"), cwd=project, env=environment(), stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    for build in builds:
        _, errors = build.communicate(timeout=300)
        assert build.returncode == 0, errors
    assert bundle_files(project / "build" / "edgeopt" / "arm64") == undisturbed
    assert [path.name for path in (project / "build" / "edgeopt").iterdir()] == ["arm64"]
