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

from edgeopt import verify
from edgeopt.artifacts import canonical_json
from edgeopt.bundle.golden import load_golden, save_golden
from edgeopt.devices.compiler import Compiler, compiler_for
from edgeopt.devices.device import C, Runner
from edgeopt.devices.runner import Library, ready_runner
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
