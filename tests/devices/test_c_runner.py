"""The C runner says what run_parity.py says, on any bundle, and is built and sent where there is no Python."""

from __future__ import annotations

import hashlib
import json
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ssh_server import running_server
from tiny_project import edgeopt_run

from edgeopt import verify
from edgeopt.artifacts import canonical_json
from edgeopt.bundle.golden import load_golden, save_golden
from edgeopt.devices.compiler import Compiler, compiler_for
from edgeopt.devices.device import C, DeviceFacts, Runner, RunRequest
from edgeopt.devices.elf import floor_of
from edgeopt.devices.qemu import BOARDS, Emulation, QemuDevice
from edgeopt.devices.runner import Library, chosen_runner, missing_libraries, ready_runner
from edgeopt.devices.ssh import SshDevice
from edgeopt.errors import BundleError, DeviceError, MissingDependencyError, UsageError
from edgeopt.parity import manifest_digest

HERE = platform.machine()
WARNINGS = (
    "-std=c11", "-D_GNU_SOURCE", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow",
    "-Wundef", "-Wcast-align", "-Wdouble-promotion", "-Werror",
)  # fmt: skip


@pytest.fixture(scope="module")
def runner(bundle: Path) -> Iterator[Runner]:
    """The runner for this machine."""
    with ready_runner(C, bundle, HERE, None) as ready:
        yield ready


@pytest.fixture(scope="module")
def sanitized(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner for this machine, which ends with 99 where it reads or writes what it must not."""
    checks = "-fsanitize=address,undefined -fno-sanitize-recover=all -g"
    compiler = Compiler((*compiler_for(HERE).command, *checks.split()))
    return compiler.build_runner(bundle, tmp_path_factory.mktemp("sanitized"))


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    return Path(shutil.copytree(bundle, tmp_path / "changed"))


def run(program: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *map(str, arguments)], env=variables or None, capture_output=True, text=True, errors="replace",
        timeout=60, check=False,
    )  # fmt: skip


def program_of(runner: Runner) -> str:
    return str(next(iter(runner.files.values())))


def manifest_of(bundle: Path) -> dict:
    return json.loads((bundle / "bundle.json").read_text())


def seal(bundle: Path, **new: object) -> None:
    """State the hashes anew, as if the bundle had been built so."""
    manifest = {**manifest_of(bundle), **new}
    for name, facts in manifest["files"].items():
        content = (bundle / name).read_bytes()
        facts.update(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    manifest["digest"] = manifest_digest(manifest)
    (bundle / "bundle.json").write_text(canonical_json(manifest), encoding="utf-8")


def change_golden(bundle: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    golden = load_golden(bundle / "golden.npz")
    save_golden({**golden, name: change(golden[name])}, bundle / "golden.npz")


# ---------------------------------------------------------------- the same verdict


def worse(bundle: Path) -> None:
    """Break every limit that a number can break."""
    change_golden(
        bundle, "quantized/logits", lambda values: np.clip(values.astype(np.int16) + 3, -128, 127).astype("i1")
    )
    change_golden(bundle, "float/logits", lambda values: -values[:, ::-1])
    limits = {"min_sqnr_db": 12.25, "min_cosine": 0.99, "min_top1_agreement": 0.95, "min_integer_coverage": 1.5}
    seal(bundle, limits={**manifest_of(bundle)["limits"], **limits})


def infinite(bundle: Path) -> None:
    change_golden(bundle, "float/logits", lambda values: np.where(np.arange(4) == 1, np.inf, values).astype("f4"))
    seal(bundle)


def real(bundle: Path) -> None:
    """Answers that the quantized reference gave as real numbers, one of them NaN."""
    (facts,) = manifest_of(bundle)["outputs"]

    def change(values: np.ndarray) -> np.ndarray:
        numbers = (values.astype("f4") - facts["zero_point"]) * np.float32(facts["scale"])
        numbers[2, 1] = np.nan
        return numbers

    change_golden(bundle, "quantized/logits", change)
    seal(bundle)


def renamed(bundle: Path) -> None:
    """Names of all planes of Unicode, and no labels."""
    golden = load_golden(bundle / "golden.npz")
    del golden["labels"]
    save_golden({**golden, "names": np.array(['a"\\\n', "é", "\u4e2d/\u0001", "\U0001f600"])}, bundle / "golden.npz")
    seal(bundle, name="nämé\t\u2028")


@pytest.mark.parametrize(
    ("change", "exit_code"),
    [(lambda bundle: None, 0), (worse, 12), (infinite, 12), (real, 12), (renamed, 0)],
    ids=["as built", "worse", "infinite", "real", "renamed"],
)
def test_report_is_that_of_run_parity_field_for_field(
    changed: Path, runner: Runner, tmp_path: Path, change: Callable[[Path], None], exit_code: int
) -> None:
    change(changed)
    python = run(sys.executable, changed / "run_parity.py", "--json", tmp_path / "python.json", "--threads", "2")
    c = run(program_of(runner), "--json", tmp_path / "c.json", "--threads", "2", changed)
    assert (python.returncode, c.returncode) == (exit_code, exit_code), c.stderr
    expected = json.loads((tmp_path / "python.json").read_text())
    actual = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    runtimes = expected.pop("runtime"), actual.pop("runtime")
    assert actual == expected
    assert actual["kernels"] == "XNNPACK"
    assert "XNNPACK delegate" in c.stderr
    assert c.stdout.replace(runtimes[1], runtimes[0]) == python.stdout


@pytest.mark.parametrize("board", BOARDS)
def test_board_answers_by_the_c_runner_what_this_machine_answers(
    bundle: Path, emulation: Emulation, cross_compiler: Compiler, board: str
) -> None:
    report = verify(bundle, device=f"qemu:{board}", runner=C)
    assert report.passed, report.failures
    assert [output.max_steps for output in report.outputs] == [0]
    assert report.outputs == verify(bundle).outputs
    assert report.runtime == f"ai-edge-litert {Library.for_cpu('aarch64').version}, C API"
    assert report.kernels == "XNNPACK"


def test_latency_has_the_fields_of_run_latency_when_it_is_measured(bundle: Path) -> None:
    cost = verify(bundle, runner=C, latency_s=0.05, sustained_s=1, threads=1).cost
    assert cost.latency_ms is not None
    assert cost.latency_ms.p50 <= cost.latency_ms.p90 <= cost.latency_ms.p99
    assert cost.latency_ms.runs >= 10
    assert cost.peak_memory_bytes is not None
    assert cost.peak_memory_bytes > 1_000_000
    assert len(cost.sustained) == 10


# ---------------------------------------------------------------- damaged bundles


def flip_a_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.tflite").read_bytes())
    content[100] ^= 1
    (bundle / "model.tflite").write_bytes(content)


def cut_golden(bundle: Path) -> None:
    (bundle / "golden.npz").write_bytes((bundle / "golden.npz").read_bytes()[:-30])
    seal(bundle)


def compress_golden(bundle: Path) -> None:
    np.savez_compressed(bundle / "golden.npz", **load_golden(bundle / "golden.npz"))
    seal(bundle)


def no_samples(bundle: Path) -> None:
    golden = load_golden(bundle / "golden.npz")
    save_golden({name: array[:0] for name, array in golden.items()}, bundle / "golden.npz")
    seal(bundle)


def a_key_twice(bundle: Path) -> None:
    text = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text('{"digest": "x",' + text[1:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "model.tflite is not the file that was built"),
        (lambda bundle: (bundle / "README.md").unlink(), "README.md is missing: No such file"),
        (lambda bundle: (bundle / "bundle.json").write_text("["), "it is cut off"),
        (lambda bundle: (bundle / "bundle.json").write_text("[" * 100_000), "it is nested too deeply"),
        (lambda bundle: (bundle / "bundle.json").write_text('{"schema_version": 2}'), "has schema version 2"),
        (lambda bundle: seal(bundle, files={}), "bundle.json does not list model.tflite"),
        (lambda bundle: seal(bundle, outputs=[]), "a verdict on nothing would be a yes"),
        (a_key_twice, "a key comes twice"),
        (cut_golden, "golden.npz is damaged: it is no zip archive, or cut off"),
        (compress_golden, "is compressed (method 8), expected stored (0)"),
        (no_samples, "golden.npz has no samples"),
    ],
)  # fmt: skip
def test_damaged_bundle_is_refused_with_11(changed: Path, runner: Runner, damage: Callable, message: str) -> None:
    damage(changed)
    done = run(program_of(runner), changed)
    assert (done.returncode, done.stdout) == (11, "")
    assert message in done.stderr


def test_file_outside_the_bundle_is_refused_before_it_is_read(changed: Path, runner: Runner) -> None:
    (changed.parent / "x").write_text("")
    manifest = manifest_of(changed)
    manifest["files"]["firmware/../../x"] = {"sha256": hashlib.sha256(b"").hexdigest(), "size_bytes": 0}
    seal(changed, files=manifest["files"])
    done = run(program_of(runner), changed)
    assert done.returncode == 11
    assert "names a file outside the bundle: firmware/../../x" in done.stderr


def test_mutated_bundle_is_judged_or_refused_and_nothing_is_read_that_must_not_be(
    changed: Path, sanitized: Path
) -> None:
    chance = random.Random(0)
    golden = (changed / "golden.npz").read_bytes()
    headers = [at for mark in (b"PK", b"NUMPY") for at in range(len(golden)) if golden.startswith(mark, at)]
    variables = {
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99", "UBSAN_OPTIONS": "exitcode=99",
        "LD_LIBRARY_PATH": str(Library.for_cpu(HERE).path.parent),
    }  # fmt: skip
    codes = set()
    for _ in range(60):
        mutated = bytearray(golden)
        for _ in range(chance.randrange(1, 4)):
            at = min(chance.choice(headers) + chance.randrange(100), len(golden) - 1)
            mutated[at] = chance.choice([0, 1, 39, 41, 57, 127, 255])
        (changed / "golden.npz").write_bytes(mutated[: chance.choice([None, None, chance.randrange(len(golden))])])
        seal(changed)
        done = run(str(sanitized), changed, **variables)
        assert done.returncode in (0, 11, 12), done.stderr
        codes.add(done.returncode)
    assert 11 in codes


# ---------------------------------------------------------------- the program


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_sources_compile_without_a_warning_in_gcc(
    bundle: Path, cross_compiler: Compiler, tmp_path: Path, architecture: str
) -> None:
    compiler = cross_compiler if architecture == "aarch64" else compiler_for(HERE)
    words = (*compiler.command, *WARNINGS)
    assert Compiler(words, compiler.environment).build_runner(bundle, tmp_path).exists()


@pytest.mark.parametrize("options", [(), ("--target=aarch64-linux-gnu",)], ids=["x86_64", "aarch64"])
def test_sources_compile_without_a_warning_in_clang(
    bundle: Path, unpacked: Callable[[str], Path], cross_compiler: Compiler, options: tuple[str, ...]
) -> None:
    root = unpacked("clang-14")
    libraries = sorted({str(path.parent) for path in root.glob("usr/lib/**/lib*.so*")})
    include = Path(cross_compiler.command[0]).parents[1] / "aarch64-linux-gnu/include"
    system = (f"-isystem{include}",) if options else ()
    done = run(
        str(root / "usr/bin/clang-14"), *options, *system, *WARNINGS, "-fsyntax-only",
        *sorted((bundle / "runner").glob("*.c")), LD_LIBRARY_PATH=":".join(libraries),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads takes 1 to 1024"),
        (["--threads", "two"], "--threads takes a number, got 'two'"),
        (["--json"], "or one without its value: --json"),
        (["--runtime", "tensorflow"], "unknown argument: --runtime"),
    ],
)
def test_wrong_usage_ends_with_2(runner: Runner, arguments: list[str], message: str) -> None:
    done = run(program_of(runner), *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_program_ends_with_13_when_there_is_no_litert(bundle: Path, runner: Runner, tmp_path: Path) -> None:
    alone = shutil.copy(program_of(runner), tmp_path / "run_parity")
    done = run(alone, bundle)
    assert done.returncode == 13
    assert "no LiteRT: libLiteRt.so: cannot open shared object file" in done.stderr


def test_program_ends_with_13_when_the_library_is_not_litert(bundle: Path, runner: Runner, tmp_path: Path) -> None:
    alone = shutil.copy(program_of(runner), tmp_path / "run_parity")
    (tmp_path / "libLiteRt.so").symlink_to(next(Path("/lib").glob("*/libz.so.1")))
    done = run(alone, bundle)
    assert done.returncode == 13
    assert "libLiteRt.so is older than LiteRT 2.2" in done.stderr


def test_program_runs_the_bundle_that_it_lies_in(changed: Path, runner: Runner) -> None:
    for name, path in runner.files.items():
        shutil.copy(path, changed / name)
    assert run(str(changed / "run_parity")).returncode == 0


# ---------------------------------------------------------------- devices


def test_flipped_byte_is_refused_on_the_device(changed: Path, emulation: Emulation, cross_compiler: Compiler) -> None:
    flip_a_byte(changed)
    with ready_runner(C, changed, "aarch64", None) as ready:
        command = [*emulation.qemu_command("pi4"), *ready.command_here(changed)]
        assert run(command[0], *command[1:]).returncode == 11
        with pytest.raises(DeviceError, match=r"model\.tflite is not the file that was built"):
            QemuDevice.named("pi4").run(changed, RunRequest(runner=ready))


# What a board's smallest Linux has; everything else, Python above all, is not on its PATH.
TOOLS = ["sh", "cat", "df", "dirname", "getconf", "mkdir", "mktemp", "readlink", "rm", "tar", "timeout", "uname"]


def test_board_without_python_is_verified_by_the_c_runner(
    bundle: Path, unpacked: Callable[[str], Path], tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    with running_server(unpacked("openssh-server"), tmp_path / "ssh", f"SetEnv PATH={tools}\n") as server:
        url = server.url(python="python3")
        facts = SshDevice(url).facts()
        report = verify(bundle, device=url)
        info = edgeopt_run(tmp_path, "device", "info", url, "--bundle", str(bundle))
        assert list(server.remote.iterdir()) == []
    assert (facts.python, facts.architecture) == (None, HERE)
    assert facts.libc.startswith("glibc 2.")
    assert str(facts.libstdcxx).startswith("GLIBCXX_3.4.")
    assert facts.num_cpus >= 1
    assert facts.memory_bytes is not None
    assert facts.free_bytes is not None
    assert report.passed, report.failures
    assert report.outputs == verify(bundle).outputs
    assert report.runtime.endswith(", C API")
    assert info.stdout.endswith("can run there\n"), info.stderr


def test_commands_set_the_compiler_up_and_use_the_one_that_is_named(
    bundle: Path, cross_compiler: Compiler, tmp_path: Path
) -> None:
    done = edgeopt_run(tmp_path, "device", "setup", "compiler")
    assert done.stdout == f"C compiler for aarch64: {cross_compiler.command[0]}\n"
    done = edgeopt_run(tmp_path, "verify", str(bundle), "--runner", "c", "--cc", "gcc -O1", "--json", "-")
    assert json.loads(done.stdout)["runtime"].endswith(", C API")


def facts_with(libc: str, libstdcxx: str | None) -> DeviceFacts:
    return DeviceFacts("ssh://x", False, "aarch64", "", 1, (), None, libc, None, {}, None, None, libstdcxx)


@pytest.mark.parametrize(
    ("facts", "reasons"),
    [
        (facts_with("glibc 2.36", "GLIBCXX_3.4.30"), []),
        (facts_with("", None), []),
        (facts_with("glibc 2.31", "GLIBCXX_3.4.30"), ["its C library is GLIBC 2.31, and libLiteRt.so needs 2.34"]),
        (facts_with("musl", "GLIBCXX_3.4.30"), ["its C library is musl, and libLiteRt.so needs GLIBC 2.34"]),
        (facts_with("", "GLIBCXX_3.4.28"), ["its C++ library is GLIBCXX 3.4.28, and libLiteRt.so needs 3.4.30"]),
        (facts_with("glibc 2.36", "none"), ["its C++ library is none, and libLiteRt.so needs GLIBCXX 3.4.30"]),
    ],
)  # fmt: skip
def test_device_is_unfit_when_its_libraries_are_older_than_litert_needs(
    emulation: Emulation, facts: DeviceFacts, reasons: list[str]
) -> None:
    runner = Runner(C, {"libLiteRt.so": Library.for_cpu("aarch64").path})
    assert list(missing_libraries(runner, facts)) == reasons


def test_floor_is_none_when_a_file_is_no_elf_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x7fELF\x02\x01" + bytes(100))
    with pytest.raises(ValueError, match="no 64-bit little-endian ELF file"):
        floor_of(tmp_path / "x", "GLIBC")


def test_c_runner_is_refused_when_the_bundle_has_none(changed: Path) -> None:
    shutil.rmtree(changed / "runner")
    manifest = manifest_of(changed)
    seal(changed, files={name: facts for name, facts in manifest["files"].items() if not name.startswith("runner/")})
    with pytest.raises(BundleError, match="has no C runner"):
        verify(changed, runner=C)


def test_c_runner_is_refused_when_another_runtime_is_asked_for(bundle: Path) -> None:
    with pytest.raises(DeviceError, match="run_parity in C has LiteRT and no tensorflow"):
        verify(bundle, runner=C, runtime="tensorflow")


def test_c_runner_is_refused_when_there_is_no_compiler(bundle: Path) -> None:
    with pytest.raises(MissingDependencyError, match="there is no compiler '/nowhere/cc -O2'"):
        verify(bundle, runner=C, compiler="/nowhere/cc -O2")


def test_compilers_words_are_in_the_error_when_the_runner_does_not_compile(bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"cc does not build the C runner: .*no-such-option"):
        verify(bundle, runner=C, compiler="cc -fno-such-option")


def test_library_is_refused_when_it_is_not_the_one_that_its_package_brought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeopt.devices.runner.sha256_file", lambda path: "0" * 64)
    with pytest.raises(DeviceError, match="is not the file that ai-edge-litert"):
        Library.for_cpu(HERE)


def test_c_runner_is_refused_when_the_model_is_no_tflite_file() -> None:
    with pytest.raises(UsageError, match=r"the C runner runs \.tflite models, and this is a \.onnx"):
        chosen_runner(C, facts_with("", None), {"model": {"format": "onnx"}})
