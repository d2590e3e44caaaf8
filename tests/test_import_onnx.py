"""``.onnx`` files as models: converted, cleaned, or refused with the reason."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeopt.errors import ModelError
from edgeopt.export import import_onnx
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import ExportSettings, InputSettings, ModelSettings

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) - 5


def write(
    path: Path,
    nodes: list[onnx.NodeProto] | None = None,
    shape: tuple[int | str, ...] = (1, 4),
    dtype: int = onnx.TensorProto.FLOAT,
    opset: int = 18,
    weights_are_inputs: bool = False,
    location: str | None = None,
) -> Path:
    """Write ``y = x @ w``, or other nodes between ``x`` and ``y``."""
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(WEIGHT.astype(helper.tensor_dtype_to_np_dtype(dtype)), "w")
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [value("x", dtype, shape), *([value("w", 1, [4, 3])] if weights_are_inputs else [])],
        [value("y", dtype, [shape[0], 3])], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset > 8 else 3)
    external = {"save_as_external_data": True, "location": location, "size_threshold": 0} if location else {}
    onnx.save_model(model, str(path), **external)
    return path


def imported(path: Path, shape: tuple[int, ...] = (1, 4), dynamic: bool = False) -> list[list[float]]:
    """Import a file and return the graph's answer to 1, 2, 3, 4."""
    settings = ModelSettings({"x": InputSettings(shape, layout="any", dynamic_batch=dynamic)}, path=path)
    sample = Sample("s", {"x": np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)})
    folder = path.parent / "out"
    folder.mkdir()
    made = import_onnx(path, settings, ExportSettings(), [sample], folder)
    assert made.inputs[0].shape == (("batch" if dynamic else 1), *shape[1:])
    assert made.outputs[0].shape[0] == ("batch" if dynamic else 1)
    return OnnxSession(made.path).run(sample.inputs)["y"].tolist()


BY_HAND = [[10.0, 20.0, 30.0]]  # 1*-5 + 2*-2 + 3*1 + 4*4 = 10, and 1+2+3+4 more for each next column


def test_import_onnx_answers_alike_when_the_file_is_plain(tmp_path: Path) -> None:
    assert imported(write(tmp_path / "net.onnx")) == BY_HAND


def test_import_onnx_takes_the_recipes_shape_when_the_file_has_sizes_of_minus_1(tmp_path: Path) -> None:
    assert imported(write(tmp_path / "net.onnx", shape=(-1, -1))) == BY_HAND


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_import_onnx_converts_when_the_opset_is_older(tmp_path: Path, opset: int) -> None:
    assert imported(write(tmp_path / "net.onnx", opset=opset, weights_are_inputs=opset < 9)) == BY_HAND
    graph = onnx.load(str(tmp_path / "out" / "model.onnx"))
    assert graph.opset_import[0].version >= 13
    assert [value.name for value in graph.graph.input] == ["x"]


def test_import_onnx_converts_operators_when_their_form_changed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["u"], axes=[0]),  # axes became an input with opset 13
        helper.make_node("Squeeze", ["u"], ["s"], axes=[0]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    assert imported(write(tmp_path / "net.onnx", nodes, opset=11)) == BY_HAND


@pytest.mark.parametrize("opset", [11, 13, 14, 18])
@pytest.mark.parametrize("name", ["HardSwish", "Gelu"])
def test_import_onnx_names_an_activation_when_the_file_spells_it_out(tmp_path: Path, name: str, opset: int) -> None:
    make = helper.make_node
    numbers = {"zero": 0.0, "three": 3.0, "six": 6.0, "half": 0.5, "one": 1.0, "root": 2**0.5}
    constants = [
        make("Constant", [], [key], value=numpy_helper.from_array(np.array(number, np.float32)))
        for key, number in numbers.items()
    ]
    spelt_out = {
        "HardSwish": [
            make("Add", ["x", "three"], ["a"]),
            make("Clip", ["a", "zero", "six"], ["b"]),
            make("Mul", ["x", "b"], ["c"]),
            make("Div", ["c", "six"], ["d"]),
        ],
        "Gelu": [
            make("Div", ["x", "root"], ["a"]),
            make("Erf", ["a"], ["b"]),
            make("Add", ["b", "one"], ["c"]),
            make("Mul", ["x", "c"], ["e"]),
            make("Mul", ["e", "half"], ["d"]),
        ],
    }[name]
    path = write(tmp_path / "net.onnx", [*constants, *spelt_out, make("MatMul", ["d", "w"], ["y"])], opset=opset)
    imported(path)
    found = [node.op_type for node in onnx.load(str(tmp_path / "out" / "model.onnx")).graph.node]
    assert found == [name, "MatMul"]


def test_import_onnx_keeps_the_batch_dynamic_when_the_recipe_says_so(tmp_path: Path) -> None:
    assert imported(write(tmp_path / "net.onnx", shape=("n", 4)), dynamic=True) == BY_HAND


def test_import_onnx_fixes_the_batch_when_the_recipe_says_so(tmp_path: Path) -> None:
    assert imported(write(tmp_path / "net.onnx", shape=("n", 4))) == BY_HAND


def test_import_onnx_reads_external_data_when_it_lies_beside_the_file(tmp_path: Path) -> None:
    assert imported(write(tmp_path / "net.onnx", location="weights.bin")) == BY_HAND
    assert (tmp_path / "weights.bin").exists()


def moved_outside(path: Path, form: str) -> None:
    """Point the tensor at a copy of its data outside of the file's folder."""
    outside = path.parent.parent / "outside.bin"
    (path.parent / "w.bin").rename(outside)
    if form == "link":
        (path.parent / "w.bin").symlink_to(outside)
        return
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = {"dots": "../outside.bin", "absolute": str(outside), "missing": "gone.bin"}[form]
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("form", ["dots", "absolute", "link", "missing"])
def test_import_onnx_refuses_when_external_data_lies_elsewhere(tmp_path: Path, form: str) -> None:
    (tmp_path / "model").mkdir()
    path = write(tmp_path / "model" / "net.onnx", location="w.bin")
    moved_outside(path, form)
    with pytest.raises(ModelError, match=r"net\.onnx: the data of 'w' must lie beside it, got '"):
        imported(path)


@pytest.mark.parametrize("op_type", ["QuantizeLinear", "MatMulInteger", "DynamicQuantizeLinear"])
def test_import_onnx_refuses_when_the_file_is_quantized(tmp_path: Path, op_type: str) -> None:
    zero = numpy_helper.from_array(np.array(0, np.int8))
    scale = numpy_helper.from_array(np.array(1, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["one"], value=scale),
        helper.make_node("Constant", [], ["zero"], value=zero),
    ]
    if op_type == "QuantizeLinear":
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        ]
    else:
        nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]))
    if op_type == "MatMulInteger":
        nodes[-1:] = [
            helper.make_node("MatMulInteger", ["q", "q2"], ["m"]),
            helper.make_node("Cast", ["m"], ["d"], to=1),
        ]
        nodes.insert(-2, helper.make_node("Transpose", ["q"], ["q2"]))
    last = helper.make_node("MatMul", ["d", "w"], ["y"])
    if op_type == "MatMulInteger":
        nodes.append(helper.make_node("Mul", ["d", "x"], ["scaled"]))
        last = helper.make_node("MatMul", ["scaled", "w"], ["y"])
    with pytest.raises(ModelError, match=r"net\.onnx is quantized already"):
        imported(write(tmp_path / "net.onnx", [*nodes, last]))


def test_import_onnx_refuses_when_the_shape_is_another(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"input 'x' has shape \[1, 4\], the recipe says \[1, 5\]"):
        imported(write(tmp_path / "net.onnx"), shape=(1, 5))


def test_import_onnx_refuses_when_the_batch_is_fixed_and_the_recipe_wants_it_dynamic(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="input 'x' has a batch of 1, the recipe says that it is dynamic"):
        imported(write(tmp_path / "net.onnx"), dynamic=True)


def test_import_onnx_refuses_when_the_type_is_another(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"input 'x' is float64, the recipe says float32"):
        imported(write(tmp_path / "net.onnx", dtype=onnx.TensorProto.DOUBLE))


def test_import_onnx_refuses_when_inputs_have_other_names(tmp_path: Path) -> None:
    settings = ModelSettings({"image": InputSettings((1, 4), layout="any")}, path=write(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match=r"has the inputs \['x'\], the recipe says \['image'\]"):
        import_onnx(settings.path, settings, ExportSettings(), [], tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 20, -10])
def test_import_onnx_refuses_when_the_file_is_truncated(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"net\.onnx"):
        imported(path)


def test_import_onnx_refuses_when_onnxruntime_does_not_know_an_operator(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], domain="com.example"),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    path = write(tmp_path / "net.onnx", nodes)
    model = onnx.load(str(path))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, str(path))
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot run net\.onnx.*com\.example"):
        imported(path)
