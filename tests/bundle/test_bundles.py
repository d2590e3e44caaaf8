"""Real bundles of a tiny network: the same bytes anywhere, tampering noticed, and a script that runs elsewhere."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_project import COMPRESSION, RECIPE, bundle_files, edgeopt_run, write_project

from edgeopt import verify
from edgeopt.errors import BundleError
from edgeopt.parity import manifest_digest

TARGETS = ("arm64", "x86", "cuda")
ALL = [argument for target in TARGETS for argument in ("--target", target)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a bundle for each target, with training, pruning and distillation."""
    folder = write_project(tmp_path_factory.mktemp("one") / "project", recipe=RECIPE + COMPRESSION)
    done = edgeopt_run(folder, "build", *ALL, variables={"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the built project, cache and all."""
    return Path(shutil.copytree(built, tmp_path / "copy", symlinks=True))


def place(folder: Path, target: str = "arm64") -> Path:
    return folder / "build" / "edgeopt" / target


# ---------------------------------------------------------------- the same bytes


def test_build_writes_the_same_bytes_when_folder_hash_seed_time_zone_and_language_differ(
    built: Path, tmp_path: Path
) -> None:
    other = write_project(tmp_path / "a much longer path, in ünicode" / "two", recipe=RECIPE + COMPRESSION)
    variables = {"PYTHONHASHSEED": "4242", "TZ": "Pacific/Kiritimati", "LANG": "de_DE.UTF-8", "LC_ALL": "C"}
    done = edgeopt_run(other, "build", *ALL, "--out", "somewhere", variables=variables)
    assert done.returncode == 0, done.stderr
    for target in TARGETS:
        expected, found = bundle_files(place(built, target)), bundle_files(other / "somewhere" / "edgeopt" / target)
        assert expected.keys() == found.keys()
        assert [name for name in expected if expected[name] != found[name]] == []


def test_bundle_names_no_folder_of_this_machine_when_it_is_read_as_bytes(built: Path) -> None:
    for target in TARGETS:
        for name, content in bundle_files(place(built, target)).items():
            assert os.fsencode(built) not in content, name
            assert str(Path.home()).encode() + b"/" not in content, name


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}


@pytest.mark.parametrize("again", [["--quiet"], ["--force"]])
def test_build_leaves_times_alone_when_nothing_changed(copy: Path, again: list[str]) -> None:
    before = times(place(copy))
    assert edgeopt_run(copy, "build", *again).returncode == 0
    assert times(place(copy)) == before


def test_build_mends_a_bundle_when_it_was_damaged(built: Path, copy: Path) -> None:
    (place(copy) / "model.tflite").write_bytes(b"damaged")
    (place(copy) / "golden.npz").unlink()
    assert edgeopt_run(copy, "build").returncode == 0
    assert bundle_files(place(copy)) == bundle_files(place(built))


def test_build_leaves_the_old_bundle_and_writes_the_evidence_when_the_verdict_is_no(built: Path, copy: Path) -> None:
    done = edgeopt_run(copy, "build", "--set", "parity.min_sqnr_db=150", "--set", "parity.max_steps=0")
    assert done.returncode == 12
    assert "dB to the float network on sample held_out/" in done.stderr
    assert bundle_files(place(copy)) == bundle_files(place(built))
    rejected = place(copy, "arm64.rejected")
    manifest = json.loads((rejected / "bundle.json").read_text())
    assert manifest["parity"]["passed"] is False
    assert {"model.tflite", "golden.npz", "run_parity.py", "README.md"} <= set(manifest["files"])


# ---------------------------------------------------------------- tampering


def resealed(folder: Path, change: Callable[[dict], object]) -> None:
    """Change bundle.json and give it a digest that fits."""
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    manifest["digest"] = manifest_digest(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("target", TARGETS)
def test_verify_says_yes_when_the_bundle_is_as_built(built: Path, target: str) -> None:
    assert verify(place(built, target)).passed


def test_verify_refuses_when_any_file_of_the_bundle_was_changed(built: Path, tmp_path: Path) -> None:
    names = [name for name in bundle_files(place(built)) if name != "bundle.json"]
    assert len(names) >= 4
    for name in names:
        for change in ("byte", "gone"):
            folder = Path(shutil.copytree(place(built), tmp_path / f"{name}.{change}"))
            content = bytearray((folder / name).read_bytes())
            content[len(content) // 2] ^= 1
            (folder / name).write_bytes(content) if change == "byte" else (folder / name).unlink()
            with pytest.raises(BundleError, match=f"{name} is "):
                verify(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"min_sqnr_db": 0.0', '"min_sqnr_db": -1.0', "bundle.json was changed after it was built"),
        ('"min_sqnr_db": 0.0', '"min_sqnr_db": NaN', "bundle.json was changed after it was built"),
        ('"schema_version": 1', '"schema_version": 2', "schema version 2, this tool reads 1"),
        ('"schema_version"', '"schema"', "cannot be read"),
        ("{", "", "cannot be read"),
    ],
)
def test_verify_refuses_when_bundle_json_was_changed(
    built: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = Path(shutil.copytree(place(built), tmp_path / "bundle"))
    text = (folder / "bundle.json").read_text()
    assert old in text
    (folder / "bundle.json").write_text(text.replace(old, new, 1))
    with pytest.raises(BundleError, match=message):
        verify(folder)


RESEALED: dict[str, tuple[Callable[[dict], object], str]] = {
    "a path leads outside": (
        lambda manifest: manifest["files"].update({"../x": manifest["files"]["README.md"]}),
        r"names a file outside the bundle: \.\./x",
    ),
    "a path is absolute": (
        lambda manifest: manifest["files"].update({"/etc/hostname": manifest["files"]["README.md"]}),
        "names a file outside the bundle: /etc/hostname",
    ),
    "the model is not listed": (
        lambda manifest: manifest["model"].update(file="../model.tflite"),
        r"does not list \.\./model\.tflite",
    ),
    "the golden vectors are not listed": (lambda manifest: manifest["files"].pop("golden.npz"), "does not list golden"),
}


@pytest.mark.parametrize("case", RESEALED)
def test_verify_refuses_a_manifest_that_fits_its_digest_when(built: Path, tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(place(built), tmp_path / "bundle"))
    resealed(folder, RESEALED[case][0])
    with pytest.raises(BundleError, match=RESEALED[case][1]):
        verify(folder)


# ---------------------------------------------------------------- the script in the bundle


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "run_parity.py"), *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_run_parity_says_yes_when_the_bundle_was_moved_away(built: Path, tmp_path: Path, target: str) -> None:
    folder = Path(shutil.copytree(place(built, target), tmp_path / "elsewhere"))
    done = run_script(folder, "--json", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "passed"
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["passed"], report["num_samples"], report["target"]) == (True, 4, target)
    assert sorted(bundle_files(folder)) == sorted(bundle_files(place(built, target)))


def test_run_parity_exits_with_12_when_the_answers_are_others(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place(built), tmp_path / "bundle"))
    with np.load(folder / "golden.npz") as stored:
        golden = dict(stored)
    golden["input/image"] = np.roll(golden["input/image"], 1, axis=0)
    np.savez(folder / "golden.npz", **golden)
    content = (folder / "golden.npz").read_bytes()
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    resealed(folder, lambda manifest: manifest["files"].update({"golden.npz": facts}))
    done = run_script(folder)
    assert done.returncode == 12
    assert "steps from the quantized reference on sample" in done.stdout
    assert done.stdout.splitlines()[-1] == "failed"


def test_run_parity_exits_with_11_when_the_model_was_changed(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place(built), tmp_path / "bundle"))
    (folder / "model.tflite").write_bytes(b"x")
    done = run_script(folder)
    assert (done.returncode, done.stdout) == (11, "")
    assert done.stderr.startswith("model.tflite is not the file that was built")


def test_run_parity_exits_with_13_when_the_runtime_cannot_load_it(built: Path) -> None:
    done = run_script(place(built), "--runtime", "onnxruntime")
    assert done.returncode == 13
    assert "choose from ai-edge-litert" in done.stderr
