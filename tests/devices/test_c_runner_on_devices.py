"""The C runner on devices: built, sent and believed where there is no Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ssh_server import running_server
from test_c_runner import HERE, flip_a_byte, manifest_of, run, seal
from tiny_project import edgeopt_run

from edgeopt import verify
from edgeopt.devices.compiler import Compiler
from edgeopt.devices.device import C, DeviceFacts, Runner, RunRequest
from edgeopt.devices.elf import floor_of
from edgeopt.devices.qemu import BOARDS, Emulation, QemuDevice
from edgeopt.devices.runner import Library, chosen_runner, missing_libraries, ready_runner
from edgeopt.devices.ssh import SshDevice
from edgeopt.errors import BundleError, DeviceError, MissingDependencyError, UsageError


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
