"""``.pt2`` archives: plain ones load, and code in one is refused without being run."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_source import Marking

from edgeopt.errors import ModelError
from edgeopt.source import load_exported_program


class Net(torch.nn.Module):
    """Weights, a buffer, a tensor constant, and arithmetic on the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = torch.cat([x, x]) * torch.tensor(2.0) + self.offset
        return self.linear(doubled).reshape(x.shape[0], 2 * 4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(Net().eval(), (torch.zeros(2, 4),), dynamic_shapes=sizes)
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(program, path)
    return path


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def rewritten(archive: Path, path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write a copy of an archive whose entries (without the folder in front) were changed."""
    with zipfile.ZipFile(archive) as source:
        entries = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as target:
        for name, content in entries.items():
            target.writestr(f"net/{name}" if not name.startswith("/") else name[1:], content)
    return path


def pickled(marker: Path) -> bytes:
    path = marker.with_name("payload")
    torch.save(Marking(marker), path)
    return path.read_bytes()


def edited(entries: dict[str, bytes], name: str, old: str, new: str) -> None:
    text = entries[name].decode()
    assert old in text, text[:500]
    entries[name] = text.replace(old, new, 1).encode()


def code(marker: Path) -> str:
    """Return a call of ``exec`` that needs no quotes and no dots."""
    return "exec(" + "+".join(f"chr({ord(letter)})" for letter in f"open({str(marker)!r},'w')") + ")"


WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


def test_load_exported_program_answers_alike_when_the_archive_is_plain(archive: Path) -> None:
    inputs = torch.arange(12.0).reshape(3, 4)
    torch.manual_seed(0)
    expected = Net().eval()(inputs)
    assert torch.equal(load_exported_program(archive).module()(inputs), expected)


def marked_pickle(config: str, entry: str) -> Callable[[dict[str, bytes], Path], None]:
    def change(entries: dict[str, bytes], marker: Path) -> None:
        edited(entries, config, '"use_pickle": false', '"use_pickle": true')
        entries[entry] = pickled(marker)

    return change


def renamed_constant(entries: dict[str, bytes], marker: Path) -> None:
    edited(entries, CONSTANTS, '"tensor_0"', '"opaque_obj_0"')
    content = pickle.dumps(Marking(marker))
    entries["data/constants/opaque_obj_0"] = content + b"\0" * (-len(content) % 4)  # torch asks for whole floats


def constant_elsewhere(entries: dict[str, bytes], _marker: Path) -> None:
    edited(entries, CONSTANTS, '"tensor_0"', '"opaque_obj_0/../tensor_0"')


def sample_inputs(entries: dict[str, bytes], marker: Path) -> None:
    entries["data/sample_inputs/model.pt"] = pickled(marker)


def old_weights(entries: dict[str, bytes], marker: Path) -> None:
    entries["data/weights/model.pt"] = pickled(marker)


def old_constants(entries: dict[str, bytes], marker: Path) -> None:
    entries["data/constants/model.pt"] = pickled(marker)


def old_archive(entries: dict[str, bytes], marker: Path) -> None:
    from torch._export.serde.schema import SCHEMA_VERSION

    entries["/version"] = ".".join(map(str, SCHEMA_VERSION)).encode()
    entries["/serialized_exported_program.json"] = entries["models/model.json"]
    for name in ("state_dict", "constants", "example_inputs"):
        entries[f"/serialized_{name}.pt"] = pickled(marker)
    entries["models/a.json"] = b"{}"  # without sample inputs, so that torch falls back


def shape_expression(entries: dict[str, bytes], marker: Path) -> None:
    text = json.loads(entries["models/model.json"])

    def replace(node: object) -> None:
        if isinstance(node, dict):
            if "expr_str" in node:
                node["expr_str"] = code(marker)
            for value in node.values():
                replace(value)
        elif isinstance(node, list):
            for value in node:
                replace(value)

    replace(text)
    entries["models/model.json"] = json.dumps(text).encode()


def called_function(entries: dict[str, bytes], marker: Path) -> None:
    program = json.loads(entries["models/model.json"])
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {marker}"}, "kind": 1}]
    entries["models/model.json"] = json.dumps(program).encode()


def second_model(entries: dict[str, bytes], marker: Path) -> None:
    copy = dict(entries)
    shape_expression(copy, marker)
    entries["models/a.json"] = copy["models/model.json"]
    entries["data/sample_inputs/a.pt"] = entries["data/sample_inputs/model.pt"]
    for part in ("weights", "constants"):
        entries[f"data/{part}/a_{part}_config.json"] = entries[f"data/{part}/model_{part}_config.json"]


def shared_library(entries: dict[str, bytes], _marker: Path) -> None:
    entries["data/aotinductor/model/model.so"] = b"\x7fELF"


CASES = {
    "a weight is marked as a pickle": (marked_pickle(WEIGHTS, "data/weights/weight_0"), "stores .* as a pickle"),
    "a constant is marked as a pickle": (marked_pickle(CONSTANTS, "data/constants/tensor_0"), "stores .* as a pickle"),
    "a constant is named as a pickle": (renamed_constant, "opaque_obj_0"),
    "a constant is named as a pickle elsewhere": (constant_elsewhere, "stores .* as a pickle"),
    "its sample inputs hold code": (sample_inputs, "sample inputs that hold more than tensors"),
    "it has weights of the older form": (old_weights, r"data/weights/model\.pt"),
    "it has constants of the older form": (old_constants, r"data/constants/model\.pt"),
    "it is an archive of the older form too": (old_archive, "outside of its one folder"),
    "a shape expression is code": (shape_expression, "shape expression that is not arithmetic: 'exec"),
    "it calls another function": (called_function, r"calls 'torch\.os\.system', which is no operator"),
    "it holds a second model": (second_model, r"models/a\.json|data/.*a"),
    "it holds a shared library": (shared_library, r"data/aotinductor/model/model\.so"),
}


# torch 2.13 itself refuses the first three; the last would need a compiler here.
NOT_SHOWN = (
    "it holds a second model",
    "it calls another function",
    "a constant is named as a pickle elsewhere",
    "it holds a shared library",
)


@pytest.mark.parametrize("case", CASES)
def test_load_exported_program_refuses_without_running_code_when(
    archive: Path, tmp_path: Path, marker: Path, case: str
) -> None:
    change, message = CASES[case]
    path = rewritten(archive, tmp_path / "bad.pt2", lambda entries: change(entries, marker))
    with pytest.raises(ModelError, match=message):
        load_exported_program(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [name for name in CASES if name not in NOT_SHOWN])
def test_torch_itself_runs_the_code_when(archive: Path, tmp_path: Path, marker: Path, case: str) -> None:
    """The attacks are real: without the look beforehand each writes the marker."""
    path = rewritten(archive, tmp_path / "bad.pt2", lambda entries: CASES[case][0](entries, marker))
    try:
        torch.export.load(path).module()(torch.zeros(2, 4))
    except Exception as error:
        print(error)  # shown if the marker is missing
    assert marker.exists()


@pytest.mark.parametrize("keep", [0, 100, 2000, -100])
def test_load_exported_program_refuses_when_the_file_is_truncated(archive: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.pt2"
    path.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"short\.pt2 is not a \.pt2 archive"):
        load_exported_program(path)


def test_load_exported_program_names_the_weight_when_it_is_not_finite(archive: Path, tmp_path: Path) -> None:
    def poison(entries: dict[str, bytes]) -> None:
        config = json.loads(entries[WEIGHTS])["config"]
        entry = f"data/weights/{config['linear.bias']['path_name']}"
        entries[entry] = b"\xff" * len(entries[entry])

    with pytest.raises(ModelError, match=r"weight 'linear\.bias' of bad\.pt2 has NaN"):
        load_exported_program(rewritten(archive, tmp_path / "bad.pt2", poison))
