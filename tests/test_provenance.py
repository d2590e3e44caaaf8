"""Which files a build depends on, found without running them."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.errors import MissingDependencyError, ModelError
from edgeopt.provenance import fingerprint, locate, model_files, python_files, split_factory
from edgeopt.settings import InputSettings, ModelSettings

INPUTS = {"x": InputSettings((1, 4), layout="any")}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(files: tuple[Path, ...], folder: Path) -> set[str]:
    return {path.relative_to(folder.resolve()).as_posix() for path in files}


def test_python_files_follows_every_kind_of_import_when_files_are_neighbours(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "net.py": "import blocks\nfrom parts import head\nfrom parts.deep.tail import x\nimport os, numpy\n",
            "blocks.py": "def build():\n    import lazy\n",
            "lazy.py": "from net import build\n",  # a circle
            "parts/__init__.py": "from . import hidden\n",
            "parts/head.py": "from .hidden import y\nfrom .deep import tail\n",
            "parts/hidden.py": "",
            "parts/deep/__init__.py": "",
            "parts/deep/tail.py": "from ..shared import z\n",
            "parts/shared.py": "",
            "unrelated.py": "",
        },
    )
    found = names(python_files(tmp_path / "net.py", tmp_path), tmp_path)
    assert found == {
        "net.py", "blocks.py", "lazy.py", "parts/__init__.py", "parts/head.py", "parts/hidden.py",
        "parts/deep/__init__.py", "parts/deep/tail.py", "parts/shared.py",
    }  # fmt: skip


def test_python_files_includes_the_packages_above_when_a_module_inside_is_imported(tmp_path: Path) -> None:
    write(tmp_path, {"net.py": "import a.b.c\n", "a/__init__.py": "", "a/b/__init__.py": "", "a/b/c.py": ""})
    found = names(python_files(tmp_path / "net.py", tmp_path), tmp_path)
    assert found == {"net.py", "a/__init__.py", "a/b/__init__.py", "a/b/c.py"}


def test_fingerprint_changes_when_an_imported_neighbour_does(tmp_path: Path) -> None:
    write(tmp_path, {"net.py": "import blocks\n", "blocks.py": "width = 1\n", "other.py": "width = 1\n"})
    settings = ModelSettings(INPUTS, factory="net.py:build")
    before = fingerprint(model_files(settings, tmp_path))
    write(tmp_path, {"other.py": "width = 2\n"})
    assert fingerprint(model_files(settings, tmp_path)) == before
    write(tmp_path, {"blocks.py": "width = 2\n"})
    assert fingerprint(model_files(settings, tmp_path)) != before


def test_model_files_runs_nothing_when_the_code_would_write_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "open('marker', 'w').close()\nimport blocks\n"
    write(tmp_path, {"net.py": code, "blocks.py": code, "broken.py": "def (\n"})
    monkeypatch.chdir(tmp_path)
    assert len(model_files(ModelSettings(INPUTS, factory="net.py:build"), tmp_path)) == 2
    assert model_files(ModelSettings(INPUTS, factory="broken.py:build"), tmp_path) == (tmp_path / "broken.py",)
    assert not (tmp_path / "marker").exists()


def test_model_files_finds_code_and_weights_when_they_are_in_a_package() -> None:
    settings = ModelSettings(INPUTS, factory="numpy.lib.scimath:sqrt", weights="numpy:version.py")
    folder = Path(np.__file__).parent
    found = model_files(settings, Path())
    assert folder / "version.py" in found
    assert folder / "lib" / "scimath.py" in found


def test_fingerprint_is_the_same_when_the_folder_was_moved(tmp_path: Path) -> None:
    for place in ("one", "two/deeper"):
        write(tmp_path / place, {"a/x.npy": "1", "b/x.npy": "2"})
    one, two = (sorted((tmp_path / place).rglob("*.npy")) for place in ("one", "two"))
    assert fingerprint(one) == fingerprint(two)


def test_fingerprint_changes_when_two_files_of_one_name_change_places(tmp_path: Path) -> None:
    write(tmp_path, {"cat/0.npy": "1", "dog/0.npy": "2"})
    files = sorted(tmp_path.rglob("*.npy"))
    before = fingerprint(files)
    write(tmp_path, {"cat/0.npy": "2", "dog/0.npy": "1"})
    assert fingerprint(files) != before


@pytest.mark.parametrize("location", ["net.onnx.data", "weights.bin", "sub/w"])
def test_model_files_finds_external_data_when_it_has_any_name(tmp_path: Path, location: str) -> None:
    weight = onnx.numpy_helper.from_array(np.zeros((4, 400), np.float32), "w")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", 1, [1, 4])], [value("y", 1, [1, 400])],
        [weight],
    )  # fmt: skip
    (tmp_path / location).parent.mkdir(exist_ok=True)
    path = tmp_path / "net.onnx"
    onnx.save_model(onnx.helper.make_model(graph), str(path), save_as_external_data=True, location=location)
    assert (tmp_path / location).stat().st_size == 6400
    assert model_files(ModelSettings(INPUTS, path=path), tmp_path) == (path, tmp_path / location)


@pytest.mark.parametrize("reference", ["net.py", "net.py:", ":build", ""])
def test_split_factory_refuses_when_a_part_is_missing(reference: str) -> None:
    with pytest.raises(ModelError, match=r"a factory is 'package\.module:function'"):
        split_factory(reference)


def test_locate_names_the_package_when_it_is_not_installed() -> None:
    with pytest.raises(
        MissingDependencyError, match=r"(?s)needs the package 'no_such', which is not installed.*edgeopt\[demo\]"
    ):
        locate("no_such:weights.pt", Path())


def test_python_files_stays_in_its_package_when_others_are_installed_beside_it(tmp_path: Path) -> None:
    for package in ("mine", "torch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "mine/net.py").write_text("import torch\nfrom mine import layers\n")
    (tmp_path / "mine/layers.py").write_text("import torch\n")
    mine = {"mine/__init__.py", "mine/layers.py", "mine/net.py"}
    assert names(python_files(tmp_path / "mine/net.py", tmp_path), tmp_path) == {*mine, "torch/__init__.py"}
    (tmp_path / "torch-2.9.0.dist-info").mkdir()
    assert names(python_files(tmp_path / "mine/net.py", tmp_path), tmp_path) == mine


def test_python_files_stays_with_its_module_when_it_is_installed_without_a_package(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import other\n")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "other-1.0.dist-info").mkdir()
    assert names(python_files(tmp_path / "net.py", tmp_path), tmp_path) == {"net.py"}
