"""Networks from factories and weights: what loads, what is refused, and what is never run."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeopt.artifacts import TorchModel
from edgeopt.compress.rebuild import rebuild
from edgeopt.errors import ModelError, RecipeError
from edgeopt.settings import InputSettings, ModelSettings
from edgeopt.source import call_factory, check_finite, load_factory, load_weights

NET_OF_PARTS = "import torch, parts\ndef build():\n    return torch.nn.Linear(parts.width, 1)\n"
INPUTS = {"image": InputSettings((1, 3, 8, 8))}


class Marking:
    """Unpickling one writes a file: what code in a weights file could do."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 3)


# ---------------------------------------------------------------- factories


def test_load_factory_finds_the_function_when_it_is_in_a_package() -> None:
    assert load_factory("torch.nn:Identity", Path()) is torch.nn.Identity


def test_call_factory_builds_the_network_when_it_is_in_a_file(project: Path) -> None:
    network = call_factory(ModelSettings(INPUTS, factory="net.py:build"), project)
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


def test_load_factory_asks_did_you_mean_when_the_function_is_misspelt(project: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)net\.py has no function 'biuld'.*did you mean 'build'"):
        load_factory("net.py:biuld", project)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nett.py:build", r"there is no file 'nett\.py'"),
        ("no_such_package.models:build", "needs the module 'no_such_package'"),
        ("net.py", "a factory is 'package.module:function' or 'file.py:function', got 'net.py'"),
    ],
)
def test_load_factory_says_what_is_missing_when_it_is_not_there(project: Path, reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_factory(reference, project)


FAMILY = """
import torch
def build(width, *, depth=1):
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(depth)))
"""


def test_call_factory_hands_on_the_arguments_when_the_recipe_gives_some(project: Path) -> None:
    (project / "net.py").write_text(FAMILY)
    network = call_factory(ModelSettings(INPUTS, factory="net.py:build", arguments={"width": 3, "depth": 2}), project)
    assert [layer.in_features for layer in network] == [3, 3]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 3, "dept": 2}, r"(?s)\[model\.arguments\].*takes no 'dept'.*did you mean 'depth'"),
        ({"depth": 2}, r"(?s)needs the argument 'width'.*\[model\.arguments\] width ="),
        ({"width": 3, "depth": 0}, r"refuses \(width=3, depth=0\): depth must be at least 1, got 0"),
    ],
)
def test_call_factory_says_which_argument_when_it_does_not_take_it(
    project: Path, arguments: dict[str, object], message: str
) -> None:
    (project / "net.py").write_text(FAMILY)
    with pytest.raises(ModelError, match=message):
        call_factory(ModelSettings(INPUTS, factory="net.py:build", arguments=arguments), project)


def test_model_settings_refuse_arguments_when_the_model_is_a_file() -> None:
    with pytest.raises(RecipeError, match="'arguments' go with 'factory'"):
        ModelSettings(INPUTS, path=Path("model.onnx"), arguments={"width": 3})


def test_call_factory_refuses_when_it_returns_no_network(project: Path) -> None:
    (project / "net.py").write_text("def build():\n    return 'weights'\n")
    with pytest.raises(ModelError, match=r"must return a torch\.nn\.Module, got str"):
        call_factory(ModelSettings(INPUTS, factory="net.py:build"), project)


def test_call_factory_finds_the_neighbour_when_the_function_imports_it(project: Path) -> None:
    (project / "parts.py").write_text("import torch\nwidth = 5\n")
    (project / "net.py").write_text(
        "def build():\n    import torch, parts\n    return torch.nn.Linear(parts.width, 1)\n"
    )
    assert call_factory(ModelSettings(INPUTS, factory="net.py:build"), project).in_features == 5


def test_call_factory_takes_its_own_neighbour_when_another_recipe_had_one_of_that_name(tmp_path: Path) -> None:
    for width in (5, 6):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "parts.py").write_text(f"width = {width}\n")
        (folder / "net.py").write_text(
            "import torch, parts\ndef build():\n    return torch.nn.Linear(parts.width, 1)\n"
        )
        assert call_factory(ModelSettings(INPUTS, factory="net.py:build"), folder).in_features == width


def test_call_factory_takes_the_edited_neighbour_when_it_was_imported_before(project: Path) -> None:
    (project / "net.py").write_text(NET_OF_PARTS)
    for width in (5, 66):  # another length too: Python's own byte code cache goes by size and whole seconds
        (project / "parts.py").write_text(f"width = {width}\n")
        assert call_factory(ModelSettings(INPUTS, factory="net.py:build"), project).in_features == width


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "nested.pt"])
def test_load_weights_sets_them_when_the_file_is(tmp_path: Path, name: str) -> None:
    state = {"weight": torch.full((3, 2), 2.0), "bias": torch.zeros(3)}
    if name == "w.safetensors":
        save_file(state, tmp_path / name)
    else:
        torch.save({"state_dict": state, "epoch": 7} if name == "nested.pt" else state, tmp_path / name)
    network = linear()
    load_weights(network, tmp_path / name)
    assert network(torch.ones(1, 2)).tolist() == [[4.0, 4.0, 4.0]]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(3, 2)}, r"w\.pt does not fit the network: Missing key.*bias"),
        ({**linear().state_dict(), "more": torch.zeros(1)}, "Unexpected key.*more"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, "size mismatch for weight"),
        ([torch.zeros(3)], "must hold a state dict, got list"),
        ({"weight": 3.0}, "must hold a state dict"),
    ],
)
def test_load_weights_refuses_when_they_do_not_fit(tmp_path: Path, state: object, message: str) -> None:
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message):
        load_weights(linear(), tmp_path / "w.pt")


@pytest.mark.parametrize("form", ["torch", "plain", "with tensors"])
def test_load_weights_runs_no_code_when_the_pickle_holds_some(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "w.pt"
    if form == "plain":
        path.write_bytes(pickle.dumps(Marking(marker), protocol=2))
    else:
        torch.save(Marking(marker) if form == "torch" else {**linear().state_dict(), "x": Marking(marker)}, path)
    with pytest.raises(ModelError, match="pickled code is not run"):
        load_weights(linear(), path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("keep", [0, 1, 40, -4])
def test_load_weights_refuses_when_the_file_is_truncated(tmp_path: Path, name: str, keep: int) -> None:
    state = {key: value.clone() for key, value in linear().state_dict().items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(ModelError, match=name):
        load_weights(linear(), tmp_path / name)


def test_rebuild_says_which_file_is_missing_when_the_weights_are(project: Path) -> None:
    settings = ModelSettings(INPUTS, factory="net.py:build", weights="w.safetensors")
    with pytest.raises(ModelError, match=r"there is no file 'w\.safetensors' \(looked for .*project/w\.safetensors\)"):
        rebuild(settings, project, TorchModel())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rebuild_names_the_weight_when_it_is_not_finite(project: Path, value: float) -> None:
    settings = ModelSettings(INPUTS, factory="net.py:build", weights="w.safetensors")
    state = call_factory(settings, project).state_dict()
    state["5.bias"][2] = value
    save_file(state, project / "w.safetensors")
    with pytest.raises(ModelError, match=r"weight '5\.bias' of w\.safetensors has NaN or infinite values"):
        rebuild(settings, project, TorchModel())


def test_check_finite_passes_integers_when_they_are_large() -> None:
    check_finite({"steps": torch.tensor(2**62)}, "w")
