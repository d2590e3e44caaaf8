"""The C part of a bundle: real compilers, real build systems, and a self-test that notices what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_project import RECIPE, ROOT, command, edgeopt_run, environment, write_project

from edgeopt.bundle.firmware import c_identifier
from edgeopt.bundle.golden import load_golden
from edgeopt.devices.process import run_limited
from edgeopt.devices.qemu import BOARDS, Emulation

HERE = Path(__file__).parent
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wundef", "-Wcast-align", "-Werror")
GOOD = "verdict 0, 4 run, 0 steps, run code 0, aligned 1, file TFL3, shape 1 x 8 x 8 x 3"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arm64 bundle, in a folder with a space in its name, of a network that is called tiny."""
    folder = write_project(tmp_path_factory.mktemp("firmware") / "my project", recipe=f'name = "tiny"\n{RECIPE}')
    done = edgeopt_run(folder, "build", "--target", "arm64")
    assert done.returncode == 0, done.stderr
    return folder / "build" / "tiny" / "arm64"


@pytest.fixture(scope="module")
def cross(unpacked: Callable[[str], Path]) -> list[str]:
    """Debian's cross compiler for aarch64; the package of g++ brings the C library too."""
    root = unpacked("g++-aarch64-linux-gnu")
    return [str(root / "usr/bin/aarch64-linux-gnu-gcc"), f"-isystem{root}/usr/aarch64-linux-gnu/include", "-std=c11"]


def with_libraries(root: Path) -> dict[str, str]:
    folders = sorted({str(path.parent) for path in root.glob("**/lib*.so*") if "x86_64" in str(path.parent)})
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(folders)}


def run(*arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def compiled(
    bundle: Path,
    folder: Path,
    compiler: Sequence[str] = ("gcc", "-std=c11"),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Compile the sample, the model and the self-test, and link them."""
    firmware = bundle / "firmware"
    options = [*WARNINGS, f"-I{firmware}", f'-DEDGEOPT_BUNDLE="{bundle}"', "-static"]
    sources = [str(HERE / "main.c"), str(firmware / "tiny_model.c"), str(firmware / "edgeopt_self_test.c")]
    done = run(*compiler, *options, *sources, "-lm", "-o", "sample", cwd=folder, environment=environment)
    assert done.returncode == 0, done.stderr
    return folder / "sample"


def test_self_test_passes_when_the_answers_are_right(bundle: Path, tmp_path: Path) -> None:
    done = run(str(compiled(bundle, tmp_path)), cwd=tmp_path)
    assert (done.returncode, done.stdout[: len(GOOD)]) == (0, GOOD)
    facts = json.loads((bundle / "bundle.json").read_text())["inputs"][0]
    scale, zero_point = done.stdout.split()[-2:]
    assert (np.float32(scale), int(zero_point)) == (np.float32(facts["scale"]), facts["zero_point"])


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ("2", "verdict 0, 4 run, 2 steps"),
        ("3", "verdict 1, 4 run, 3 steps"),
        ("broken", "verdict 2, 0 run, 0 steps, run code 7"),
    ],
)
def test_self_test_says_how_far_off_when_the_answers_are_wrong(
    bundle: Path, tmp_path: Path, change: str, answer: str
) -> None:
    done = run(str(compiled(bundle, tmp_path)), change, cwd=tmp_path)
    assert done.stdout.startswith(answer)
    assert done.returncode == int(answer[8])


def test_golden_vectors_are_those_of_the_bundle_when_read_as_bytes(bundle: Path) -> None:
    content = (bundle / "firmware" / "golden.bin").read_bytes()
    golden = load_golden(bundle / "golden.npz")
    assert len(content) == 4 * (192 + 16)
    for index in range(4):
        at = index * 208
        assert content[at : at + 192] == golden["input/image"][index].tobytes()
        assert content[at + 192 : at + 196] == golden["quantized/logits"][index].tobytes()


@pytest.mark.parametrize("file", ["tiny_model.c", "edgeopt_self_test.c"])
def test_sources_compile_without_a_warning_as_cpp17(bundle: Path, tmp_path: Path, file: str) -> None:
    source = bundle / "firmware" / file
    options = ["-x", "c++", "-std=c++17", *WARNINGS, f'-DEDGEOPT_BUNDLE="{bundle}"', f"-I{bundle}/firmware"]
    done = run("g++", *options, "-c", str(source), "-o", "out.o", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("language", [("-x", "c", "-std=c11"), ("-x", "c++", "-std=c++17")])
def test_sources_compile_without_a_warning_in_clang(
    bundle: Path, tmp_path: Path, unpacked: Callable[[str], Path], language: tuple[str, ...]
) -> None:
    root = unpacked("clang-14")
    options = [*language, *WARNINGS, f'-DEDGEOPT_BUNDLE="{bundle}"', f"-I{bundle}/firmware", "-c"]
    for source in (bundle / "firmware").glob("*.c"):
        clang = str(root / "usr/bin/clang-14")
        done = run(clang, *options, str(source), "-o", "out.o", cwd=tmp_path, environment=with_libraries(root))
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("board", BOARDS)
def test_self_test_passes_on_aarch64_when_cross_compiled(
    bundle: Path, tmp_path: Path, cross: list[str], emulation: Emulation, board: str
) -> None:
    program = compiled(bundle, tmp_path, cross, with_libraries(Path(cross[0]).parents[2]))
    done = run_limited([*emulation.qemu_command(board), str(program)], what=board, timeout_s=60)
    assert (done.returncode, done.stdout[: len(GOOD)]) == (0, GOOD)


def test_model_of_another_size_does_not_compile(bundle: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    with (changed / "model.tflite").open("ab") as stream:
        stream.write(b"x")
    source = changed / "firmware" / "tiny_model.c"
    done = run("gcc", f'-DEDGEOPT_BUNDLE="{changed}"', "-c", str(source), "-o", "out.o", cwd=tmp_path)
    assert done.returncode != 0
    assert "model.tflite is not the file that this source was written for" in done.stderr


def test_model_does_not_compile_when_nobody_says_where_the_bundle_is(bundle: Path, tmp_path: Path) -> None:
    done = run("gcc", "-c", str(bundle / "firmware" / "tiny_model.c"), "-o", "out.o", cwd=tmp_path)
    assert done.returncode != 0
    assert "define EDGEOPT_BUNDLE" in done.stderr


def test_cmake_package_gives_a_target_that_links_and_follows_the_model(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "a bundle"))
    build = tmp_path / "build"
    configure = run("cmake", "-GNinja", f"-DBUNDLE={copy}", "-S", str(HERE), "-B", str(build), cwd=tmp_path)
    assert configure.returncode == 0, configure.stderr
    made = run("cmake", "--build", str(build), cwd=tmp_path)
    assert made.returncode == 0, made.stdout
    assert run(str(build / "sample"), cwd=tmp_path).stdout.startswith(GOOD)
    assert "no work to do" in run("ninja", "-C", str(build), cwd=tmp_path).stdout
    golden = copy / "firmware" / "golden.bin"
    content = bytearray(golden.read_bytes())
    content[192] ^= 64
    golden.write_bytes(content)
    made = run("ninja", "-C", str(build), cwd=tmp_path)
    assert "tiny_model.c.o" in made.stdout + run("ninja", "-C", str(build), "-t", "deps", cwd=tmp_path).stdout
    assert "no work to do" not in made.stdout
    installed = run("cmake", "--install", str(build), "--prefix", str(tmp_path / "root"), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    assert (tmp_path / "root/share/model.tflite").read_bytes() == (bundle / "model.tflite").read_bytes()


def test_make_fragment_builds_the_same_program(bundle: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    made = run("make", "-f", str(HERE / "Makefile"), f"BUNDLE={plain}", f"SOURCE={HERE}", "sample", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert run(str(tmp_path / "sample"), cwd=tmp_path).stdout.startswith(GOOD)
    again = run("make", "-f", str(HERE / "Makefile"), f"BUNDLE={plain}", f"SOURCE={HERE}", "sample", cwd=tmp_path)
    assert "up to date" in again.stdout


PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(product C)
list(APPEND CMAKE_MODULE_PATH "{scripts}")
include(EdgeOpt)
edgeopt_add_model(eye models/edgeopt.toml arm64)
add_custom_command(OUTPUT image.bin COMMAND ${{CMAKE_COMMAND}} -E copy "${{eye_BUNDLE}}/model.tflite" image.bin
  DEPENDS "${{eye_BUNDLE}}/bundle.json")
add_custom_target(image ALL DEPENDS image.bin)
"""


def test_edgeopt_add_model_builds_again_exactly_when_something_changed(tmp_path: Path) -> None:
    product = tmp_path / "product"
    models = write_project(product / "models")
    (product / "CMakeLists.txt").write_text(PROJECT.format(scripts=ROOT / "scripts" / "cmake"))
    build = tmp_path / "build"
    program = ";".join(command())
    variables = environment()
    configure = run(
        "cmake", "-GNinja", f"-DEDGEOPT_COMMAND={program}", "-S", str(product), "-B", str(build),
        cwd=tmp_path, environment=variables,
    )  # fmt: skip
    assert configure.returncode == 0, configure.stderr

    def ninja() -> list[str]:
        """Return what was made anew."""
        done = run("ninja", "-C", str(build), "-v", cwd=tmp_path, environment=variables)
        assert done.returncode == 0, done.stdout
        steps = re.findall(r"^\[\d+/\d+\] (.*)$", done.stdout, re.MULTILINE)
        made = {"edgeopt": " build ", "image": "image.bin"}
        return [name for name, mark in made.items() if any(mark in step for step in steps)]

    assert ninja() == ["edgeopt", "image"]
    assert (build / "image.bin").read_bytes()[4:8] == b"TFL3"
    assert ninja() == []
    (models / "edgeopt.toml").write_text(RECIPE.replace("num_golden = 4", "num_golden = 3"))
    assert ninja() == ["edgeopt", "image"]
    assert ninja() == []
    (models / "net.py").write_text((models / "net.py").read_text() + "\n# a remark\n")
    assert ninja() == ["edgeopt"]  # the bundle came out the same, so nothing behind it is made again
    assert ninja() == []
    (models / "noise" / "preprocess.py").unlink()
    done = run("ninja", "-C", str(build), cwd=tmp_path, environment=variables)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientnet-lite0", "efficientnet_lite0"),
        ("3d net", "model_3d_net"),
        ("Ünicode", "nicode"),
        ("--", "model"),
        ("A__b", "a_b"),
    ],
)
def test_c_identifier_is_one_when_the_name_is_not(name: str, expected: str) -> None:
    assert c_identifier(name) == expected
