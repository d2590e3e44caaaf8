"""What users get wrong, by the real command line: each a clear error, its own exit code, and nothing lost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_project import NET, RECIPE, bundle_files, edgeopt_run, write_project

UNSUPPORTED = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4)
        self.register_buffer("grid", torch.zeros(1, 4, 4, 2))
    def forward(self, x):
        x = torch.nn.functional.grid_sample(self.conv(x), self.grid, align_corners=False)
        return self.linear(torch.det(x))

def build():
    torch.manual_seed(0)
    return Net()
"""


def refused(folder: Path, code: int, *messages: str, arguments: tuple[str, ...] = ()) -> str:
    """Build, expect an error of this class without a traceback or a bundle, and return what was printed."""
    done = edgeopt_run(folder, "build", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for message in messages:
        assert message in done.stderr
    assert not list(folder.glob("build/edgeopt/*"))
    return done.stderr


def with_weights(folder: Path, **changes: torch.Tensor) -> None:
    """Let the recipe take its weights from ``w.safetensors``, with some of them changed."""
    namespace: dict[str, object] = {}
    exec(NET, namespace)
    state = {name: tensor.clone() for name, tensor in namespace["build"]().state_dict().items()}
    save_file({**state, **changes}, folder / "w.safetensors")
    (folder / "edgeopt.toml").write_text(RECIPE.replace("outputs =", 'weights = "w.safetensors"\noutputs ='))


def test_build_exits_with_3_when_the_recipe_has_a_typo(project: Path) -> None:
    (project / "edgeopt.toml").write_text(RECIPE.replace("num_golden", "num_goldn"))
    refused(project, 3, "[calibration] unknown key 'num_goldn'", "hint: did you mean 'num_golden'?")


def test_build_exits_with_4_when_the_weights_are_missing(project: Path) -> None:
    with_weights(project)
    (project / "w.safetensors").unlink()
    refused(project, 4, "there is no file 'w.safetensors'", "hint: paths start at the recipe's folder")


def test_build_exits_with_4_when_a_weight_is_nan(project: Path) -> None:
    with_weights(project, **{"5.weight": torch.full((4, 8), float("nan"))})
    refused(project, 4, "weight '5.weight' of w.safetensors has NaN or infinite values")


def test_build_exits_with_9_and_names_every_operator_when_arm64_has_no_kernel(tmp_path: Path) -> None:
    folder = write_project(tmp_path / "project", net=UNSUPPORTED)
    found = refused(folder, 9, "- Det '", "- GridSample '", "there is no lowering for this operator")
    assert found.count("\n  - ") == 2


def test_build_exits_with_5_when_the_calibration_folder_is_empty(project: Path) -> None:
    (project / "empty").mkdir()
    options = '\n[calibration.options]\ncalibration = "empty"\nheld_out = "empty"\n[parity]'
    recipe = RECIPE.replace('dataset = "noise"', 'dataset = "arrays"').replace("\n[parity]", options)
    (project / "edgeopt.toml").write_text(recipe)
    refused(project, 5, "the folder empty holds no .npy or .npz file")


def test_build_exits_with_5_when_the_data_set_has_no_samples(project: Path) -> None:
    (project / "noise" / "preprocess.py").write_text("def open_dataset(split, inputs, options):\n    return []\n")
    refused(project, 5, "data set 'noise' has no samples in its calibration split")


def test_build_exits_with_5_when_a_calibration_sample_is_held_out_too(project: Path) -> None:
    path = project / "noise" / "preprocess.py"
    path.write_text(path.read_text().replace('"held_out": 2000', '"held_out": 1004'))
    refused(project, 5, "[reference] held-out sample 'held_out/0' is a calibration sample too")


def test_build_exits_with_5_when_a_sample_is_nan(project: Path) -> None:
    path = project / "noise" / "preprocess.py"
    path.write_text(
        path.read_text().replace("        return Sample", "        image[0, 0, 0, 0] = np.nan\n        return Sample")
    )
    refused(project, 5, "sample 'calibration/0': input 'image' has NaN or infinite values")


def test_build_exits_with_0_when_samples_are_arrays_of_the_users(project: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("calibration", "held_out"):
        np.savez(project / f"{name}.npz", image=random.random((8, 3, 8, 8), np.float32), labels=np.arange(8) % 4)
    options = '\n[calibration.options]\ncalibration = "calibration.npz"\nheld_out = "held_out.npz"\n[parity]'
    recipe = RECIPE.replace('dataset = "noise"', 'dataset = "arrays"').replace("\n[parity]", options)
    (project / "edgeopt.toml").write_text(recipe)
    done = edgeopt_run(project, "build", "--depfile", "build.d")
    assert done.returncode == 0, done.stderr
    assert "held_out.npz" in (project / "build.d").read_text()


# ---------------------------------------------------------------- storage

LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("built") / "project")
    done = edgeopt_run(folder, "build")
    assert done.returncode == 0, done.stderr
    return folder


def out_of_disk(project: Path, out: Path, wrapper: tuple[str, ...] = ()) -> None:
    """Build another network over a bundle in ``out``; expect a clear error and the bundle untouched."""
    bundle = out / "edgeopt" / "arm64"
    before = bundle_files(bundle)
    (project / "net.py").write_text(NET.replace("manual_seed(0)", "manual_seed(7)"))
    done = edgeopt_run(project, "build", "--out", str(out), wrapper=wrapper)
    assert done.returncode == 14, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr
    assert bundle_files(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["arm64"]
    assert not list((out / ".cache").glob(".*.work"))


@pytest.mark.parametrize("size", [100, 4000])
def test_build_exits_with_14_and_keeps_the_bundle_when_files_cannot_grow(
    built: Path, project: Path, tmp_path: Path, size: int
) -> None:
    """A limit on file size stands for a full disk: each size stops another stage."""
    out = tmp_path / "out"
    subprocess.run(["cp", "-a", str(built / "build"), str(out)], check=True)
    out_of_disk(project, out, (sys.executable, "-c", LIMITED, str(size)))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system needs root and CAP_SYS_ADMIN: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free_kb", [0, 60])
def test_build_exits_with_14_and_keeps_the_bundle_when_the_disk_is_full(
    built: Path, project: Path, tmp_path: Path, free_kb: int
) -> None:
    with mounted(tmp_path / "disk", "size=1m") as out:
        subprocess.run(["cp", "-a", f"{built / 'build'}/.", str(out)], check=True)
        stats = os.statvfs(out)
        (out / "filler").write_bytes(bytes(max(stats.f_bavail * stats.f_bsize - free_kb * 1024, 0)))
        out_of_disk(project, out)


def test_build_exits_with_14_when_the_out_folder_is_read_only(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if os.geteuid():
        out.mkdir(mode=0o555)
        refused(project, 14, "cannot write", arguments=("--out", str(out)))
    else:
        with mounted(out, "ro"):
            refused(project, 14, "cannot write", "Read-only file system", arguments=("--out", str(out)))


def test_build_exits_with_14_when_the_out_folder_is_a_file(project: Path) -> None:
    (project / "taken").write_text("a file")
    for out in ("taken", "taken/deeper"):
        refused(project, 14, "cannot write", arguments=("--out", out))
    assert (project / "taken").read_text() == "a file"
