"""The wheel and the editable install carry everything, ``targets/`` and ``calibration/`` included.

Both are installed into environments of their own beside the packages of this one, and build there, outside the
checkout.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_project import ROOT, write_project

import edgeopt

TOP_LEVEL = {"edgeopt": "edgeopt", "targets": "edgeopt/targets", "calibration": "edgeopt/calibration"}
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
BUILD_REQUIRES_SETUPTOOLS = 77


@dataclass(frozen=True)
class Install:
    """An environment with edgeopt in it, a folder to work in, and where edgeopt must be imported from."""

    python: Path
    folder: Path
    expected: Path

    def run(self, *command: str | Path) -> str:
        """Run a command in the folder and return its stdout."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(command, cwd=self.folder, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def edgeopt(self, *arguments: str) -> str:
        """Run the installed command."""
        return self.run(self.python.with_name("edgeopt"), *arguments)


def carried_files() -> set[str]:
    """Return what Git keeps of the three top-level folders, by the name that it has when installed."""
    listed = subprocess.run(
        ["git", "ls-files", *TOP_LEVEL], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return {TOP_LEVEL[name.split("/")[0]] + name[name.index("/") :] for name in listed if (ROOT / name).is_file()}


def new_environment(folder: Path) -> Path:
    """Make an environment with the packages of this one (as links) but not its edgeopt; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for path in SITE_PACKAGES.iterdir():
        if path.suffix != ".pth" and not path.name.startswith(("edgeopt", "__editable__")):
            (packages / path.name).symlink_to(path)
    return folder / "bin/python"


def pip(*arguments: str | Path) -> None:
    """Run this environment's pip without network: what is built needs only the setuptools that is here."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what Git keeps, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    setuptools = pytest.importorskip("setuptools", reason="building a wheel needs setuptools, which torch brings")
    if int(setuptools.__version__.split(".")[0]) < BUILD_REQUIRES_SETUPTOOLS:
        pytest.skip(f"setuptools {setuptools.__version__} is older than pyproject.toml asks for")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(
    request: pytest.FixtureRequest, source: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Install:
    """Edgeopt in a fresh environment, outside the checkout."""
    folder = tmp_path_factory.mktemp(request.param)
    python = new_environment(folder / "environment")
    what = (wheel,) if request.param == "wheel" else ("--no-build-isolation", "--editable", source)
    pip("--python", python, "install", "--no-deps", "--force-reinstall", "--ignore-installed", *what)
    project = write_project(folder / "project")
    return Install(python, project, folder if request.param == "wheel" else source)


def test_packages_are_all_declared_when_folders_are_compared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    modules = [Path(name) for name in carried_files() if name.endswith(".py")]
    assert {".".join(path.parent.parts) for path in modules} == set(declared)


@pytest.mark.slow
def test_wheel_has_every_file_when_compared_with_git(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert carried_files() == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_install_is_the_one_imported_when_another_is_in_the_checkout(installed: Install) -> None:
    code = "import edgeopt, edgeopt.targets.x86.backend as b; print(edgeopt.__file__); print(b.__file__)"
    package, backend = (Path(line) for line in installed.run(installed.python, "-c", code).splitlines())
    assert package.is_relative_to(installed.expected)
    assert backend.is_relative_to(installed.expected)
    assert package != Path(edgeopt.__file__)


@pytest.mark.slow
def test_install_builds_and_verifies_when_used_outside_the_checkout(installed: Install) -> None:
    result = json.loads(installed.edgeopt("build", "--target", "all", "--json", "-"))
    assert {bundle["target"] for bundle in result["bundles"]} == {"arm64", "cuda", "x86"}
    for bundle in result["bundles"]:
        assert bundle["parity"]["passed"]
        assert json.loads(installed.edgeopt("verify", bundle["path"], "--json", "-"))["passed"]
        assert json.loads(installed.edgeopt("inspect", bundle["path"], "--json", "-"))["num_operators"] > 0
        assert "passed" in installed.run(installed.python, Path(bundle["path"]) / "run_parity.py")


@pytest.mark.slow
def test_install_hashes_only_its_own_code_when_torch_lies_beside_it(installed: Install) -> None:
    code = "from edgeopt.provenance import python_files; from pathlib import Path; import edgeopt\n"
    code += "folder = Path(edgeopt.__file__).parent\n"
    code += "print(*python_files(folder / 'compress/train.py', folder.parent), sep='\\n')"
    files = [Path(line) for line in installed.run(installed.python, "-c", code).splitlines()]
    assert len(files) > 5
    assert all("edgeopt" in path.relative_to(installed.expected.resolve()).parts for path in files)


@pytest.mark.slow
def test_install_finds_what_lies_in_folders_when_asked(installed: Install) -> None:
    targets = json.loads(installed.edgeopt("targets", "--json", "-"))
    assert set(targets) == {"arm64", "cuda", "mcu", "x86"}
    assert all(Path(facts["folder"]).is_relative_to(installed.expected) for facts in targets.values())
    recipes = json.loads(installed.edgeopt("recipes", "--json", "-"))
    assert set(recipes) == {"efficientnet_lite0", "mnist5k", "mobilenet_v2"}
    assert {check["target"] for check in json.loads(installed.edgeopt("doctor", "--json", "-"))["checks"]} == set(
        targets
    )
    installed.edgeopt("init", "mine.toml")
    code = (
        "from edgeopt.recipe import load_recipe; from edgeopt.dataset import find_dataset; from pathlib import Path\n"
    )
    code += "loaded = load_recipe('mine.toml'); print(find_dataset(loaded.recipe.calibration, loaded.folder).path)"
    assert Path(installed.run(installed.python, "-c", code).strip()).is_relative_to(installed.expected)
