"""The C part of a bundle: real compilers, real build systems, and a self-test that notices what is wrong."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from tiny_project import RECIPE, ROOT, bundle_files, command, edgeopt_run, environment, write_project

from edgeopt.bundle.coding import coded_size
from edgeopt.bundle.firmware import c_identifier
from edgeopt.bundle.golden import load_golden
from edgeopt.devices.compiler import Compiler
from edgeopt.devices.process import run_limited
from edgeopt.devices.qemu import BOARDS, Emulation
from edgeopt.devices.runner import Library

HERE = Path(__file__).parent
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wundef", "-Wcast-align", "-Werror")
GOOD = "verdict 0, 4 run, 0 steps, run code 0, aligned 1, file TFL3, shape 1 x 8 x 8 x 3, 4 labels, grün"
LABELS = """
[labels.logits]
names = ["red", "grün", "blue \\"sky\\"", "??/"]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arm64 bundle, in a folder with a space in its name, of a network that is called tiny."""
    recipe = f'name = "tiny"\n{RECIPE}{LABELS}'
    folder = write_project(tmp_path_factory.mktemp("firmware") / "my project", recipe=recipe)
    done = edgeopt_run(folder, "build", "--target", "arm64", "--target", "mcu")
    assert done.returncode == 0, done.stderr
    return folder / "build" / "tiny" / "arm64"


@pytest.fixture(scope="module")
def micro_bundle(bundle: Path) -> Path:
    """The same for a microcontroller, with its data as C arrays."""
    return bundle.with_name("mcu")


@pytest.fixture(scope="module")
def cross(cross_compiler: Compiler) -> list[str]:
    """The cross compiler for aarch64."""
    return [*cross_compiler.command, "-std=c11"]


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


@pytest.mark.parametrize("target", ["arm64", "mcu"])
def test_self_test_passes_when_the_answers_are_right(bundle: Path, tmp_path: Path, target: str) -> None:
    done = run(str(compiled(bundle.with_name(target), tmp_path)), cwd=tmp_path)
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


def test_golden_vectors_of_a_microcontroller_are_those_of_the_reference_kernels(micro_bundle: Path) -> None:
    content = (micro_bundle / "firmware" / "golden.bin").read_bytes()
    expected = load_golden(micro_bundle / "golden.npz")["built_in/logits"]
    assert len(content) == 4 * (192 + 16)
    assert [content[at + 192 : at + 196] for at in range(0, 832, 208)] == [answer.tobytes() for answer in expected]


def test_manifest_names_the_classes(bundle: Path) -> None:
    labels = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["labels"]
    assert labels == {"logits": ["red", "grün", 'blue "sky"', "??/"]}


@pytest.mark.parametrize("target", ["arm64", "mcu"])
@pytest.mark.parametrize("file", ["tiny_model.c", "edgeopt_self_test.c", "edgeopt_decode.c", "edgeopt_lzma.c"])
def test_sources_compile_without_a_warning_as_cpp17(bundle: Path, tmp_path: Path, file: str, target: str) -> None:
    firmware = bundle.with_name(target) / "firmware"
    options = ["-x", "c++", "-std=c++17", *WARNINGS, f'-DEDGEOPT_BUNDLE="{bundle}"', f"-I{firmware}"]
    done = run("g++", *options, "-c", str(firmware / file), "-o", "out.o", cwd=tmp_path)
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


def test_arrays_are_read_only_and_aligned_when_compiled_for_a_microcontroller(
    micro_bundle: Path, tmp_path: Path, unpacked: Callable[[str], Path]
) -> None:
    root = unpacked("clang-14")
    flags = ["--target=thumbv7em-none-eabi", "-mcpu=cortex-m4", "-ffreestanding", "-std=c11", *WARNINGS]
    for source in (micro_bundle / "firmware").glob("*.c"):
        options = [*flags, f"-I{micro_bundle}/firmware", "-c", str(source), "-o", f"{source.stem}.o"]
        done = run(str(root / "usr/bin/clang-14"), *options, cwd=tmp_path, environment=with_libraries(root))
        assert (done.returncode, done.stderr) == (0, "")
    section, flags_of, alignment = section_of(tmp_path / "tiny_model.o", "tiny_model_data")
    assert section == ".rodata"
    assert flags_of == SHF_ALLOC  # and not SHF_WRITE: a linker puts it into flash
    assert alignment >= 16


SHF_ALLOC = 2


def section_of(path: Path, symbol: str) -> tuple[str, int, int]:
    """Return name, flags and alignment of the section that defines a symbol in a 32-bit ELF object."""
    content = path.read_bytes()
    assert content[:5] == b"\x7fELF\x01"
    (start,), (size, count, names) = struct.unpack_from("<I", content, 32), struct.unpack_from("<3H", content, 46)
    sections = [struct.unpack_from("<10I", content, start + index * size) for index in range(count)]

    def text(table: int, at: int) -> str:
        begin = sections[table][4] + at
        return content[begin : content.index(b"\0", begin)].decode()

    (symbols,) = (section for section in sections if section[1] == 2)
    for at in range(symbols[4], symbols[4] + symbols[5], symbols[9]):
        name, _, _, _, _, home = struct.unpack_from("<3I2BH", content, at)
        if text(symbols[6], name) == symbol:
            found = sections[home]
            return text(names, found[0]), found[2], found[8]
    raise AssertionError(f"{path} has no {symbol}")


@pytest.mark.parametrize("board", BOARDS)
def test_self_test_passes_on_aarch64_when_cross_compiled(
    bundle: Path, tmp_path: Path, cross: list[str], emulation: Emulation, board: str
) -> None:
    program = compiled(bundle, tmp_path, cross, with_libraries(Path(cross[0]).parents[2]))
    done = run_limited([*emulation.qemu_command(board), str(program)], what=board, timeout_s=60)
    assert (done.returncode, done.stdout[: len(GOOD)]) == (0, GOOD)


def test_coded_model_is_decoded_at_load_by_what_travels_in_the_bundle(
    bundle: Path, tmp_path: Path, cross: list[str], emulation: Emulation
) -> None:
    coded, firmware = coded_size(bundle / "model.tflite").content, bundle / "firmware"
    (tmp_path / "coded").write_bytes(len(coded).to_bytes(4, "little") + coded)
    sources = [HERE.parent / "bundle" / "decode.c", firmware / "edgeopt_decode.c", firmware / "edgeopt_lzma.c"]
    options = [*WARNINGS, f"-I{firmware}", "-static", "-o", "decode"]
    compiler = with_libraries(Path(cross[0]).parents[2])
    done = run(*cross, *options, *map(str, sources), cwd=tmp_path, environment=compiler)
    assert done.returncode == 0, done.stderr
    program = [*emulation.qemu_command("pi4"), *(str(tmp_path / name) for name in ("decode", "coded", "model"))]
    assert run_limited(program, what="pi4", timeout_s=60).stdout == "0\n"
    assert (tmp_path / "model").read_bytes() == (bundle / "model.tflite").read_bytes()


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


TOOLCHAIN = """
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER "{compiler}")
set(CMAKE_C_FLAGS_INIT "{flags}")
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_FIND_ROOT_PATH "{staging}")
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
"""


def test_package_is_found_where_yocto_and_buildroot_install_it(
    bundle: Path, tmp_path: Path, cross: list[str], emulation: Emulation
) -> None:
    """The commands of their cmake classes: cross configure, install into DESTDIR, find_package in the sysroot."""
    staging, image, toolchain = (tmp_path / name for name in ("staging", "image", "toolchain.cmake"))
    toolchain.write_text(TOOLCHAIN.format(compiler=cross[0], flags=" ".join(cross[1:]), staging=staging))
    compiler = with_libraries(Path(cross[0]).parents[2])

    def cmake(*arguments: str, destination: Path | None = None) -> None:
        environment = {**compiler, **({"DESTDIR": str(destination)} if destination else {})}
        done = run("cmake", *arguments, cwd=tmp_path, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    prepare = (f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DCMAKE_INSTALL_PREFIX=/usr")
    cmake("-S", str(bundle / "cmake"), "-B", "package", *prepare)
    cmake("--install", "package", destination=staging)
    cmake("--install", "package", "--component", "runtime", destination=image)
    assert bundle_files(staging / "usr/share/edgeopt_model-tiny") == bundle_files(bundle)
    (installed,) = (path for path in image.rglob("*") if path.is_file())
    assert installed.relative_to(image).as_posix() == "usr/share/edgeopt_model-tiny/model.tflite"
    cmake("-S", str(HERE), "-B", "product", *prepare)
    cmake("--build", "product")
    program = str(tmp_path / "product" / "sample")
    done = run_limited([*emulation.qemu_command("pi4"), program], what="pi4", timeout_s=60)
    assert (done.returncode, done.stdout[: len(GOOD)]) == (0, GOOD)


def test_recipe_for_yocto_names_what_is_installed(bundle: Path) -> None:
    recipe = (ROOT / "scripts/yocto/edgeopt-model_1.0.bb").read_text()
    values = dict(re.findall(r'^([A-Z_:{}$]+(?:-dev)?) = "(.*)"$', recipe.replace("${PN}", "PN"), re.MULTILINE))
    assert (bundle / values["OECMAKE_SOURCEPATH"].removeprefix("${S}/") / "CMakeLists.txt").is_file()
    patterns = [values[key].replace("${datadir}", "/usr/share") for key in ("FILES:PN", "FILES:PN-dev")]
    assert fnmatch("/usr/share/edgeopt_model-tiny/model.tflite", patterns[0])
    assert fnmatch("/usr/share/edgeopt_model-tiny", patterns[1])


def test_package_for_buildroot_is_read_by_make(bundle: Path, tmp_path: Path) -> None:
    package = ROOT / "scripts/buildroot/edgeopt-model.mk"
    (tmp_path / "Makefile").write_text(
        "define cmake-package\nshow: ; @echo '$(EDGEOPT_MODEL_SUBDIR)' && $(EDGEOPT_MODEL_INSTALL_TARGET_CMDS)\nendef\n"
        f"BR2_CMAKE = echo\nTARGET_DIR = image\nEDGEOPT_MODEL_BUILDDIR = build\ninclude {package}\n"
    )
    shown = run("make", "show", cwd=tmp_path)
    assert shown.stdout.splitlines() == ["cmake", "--install build --component runtime"], shown.stderr
    assert (bundle / "cmake" / "CMakeLists.txt").is_file()


def test_run_parity_is_built_by_cmake_when_it_is_asked_for(bundle: Path, tmp_path: Path) -> None:
    build = tmp_path / "build"
    configure = run("cmake", "-GNinja", f"-DBUNDLE={bundle}", "-S", str(HERE), "-B", str(build), cwd=tmp_path)
    assert configure.returncode == 0, configure.stderr
    made = run("cmake", "--build", str(build), cwd=tmp_path)
    assert made.returncode == 0, made.stdout
    assert not (build / "run_parity").exists()
    made = run("cmake", "--build", str(build), "--target", "run_parity", cwd=tmp_path)
    assert made.returncode == 0, made.stdout
    (build / "libLiteRt.so").symlink_to(Library.for_cpu(platform.machine()).path)
    assert run(str(build / "run_parity"), str(bundle), cwd=tmp_path).stdout.endswith("passed\n")


def test_run_parity_is_built_by_make_where_it_is_called(bundle: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    made = run("make", "-f", str(plain / "runner/Makefile"), "CFLAGS=-O0 -Wall -Werror", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "libLiteRt.so").symlink_to(Library.for_cpu(platform.machine()).path)
    assert run(str(tmp_path / "run_parity"), "bundle", cwd=tmp_path).stdout.endswith("passed\n")
    assert "up to date" in run("make", "-f", str(plain / "runner/Makefile"), cwd=tmp_path).stdout


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
