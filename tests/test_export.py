"""PyTorch and ONNX files to clean graphs, and the comparison that trusts no exporter."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeopt.artifacts import FloatModel
from edgeopt.errors import ExportError, ModelError
from edgeopt.export import compare, export_torch, float_model, torch_answer
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.settings import ExportSettings, InputSettings, ModelSettings

SETTINGS = ExportSettings()


def model_settings(
    *shapes: tuple[int, ...], dynamic: bool = False, outputs: tuple[str, ...] = (), path: Path | None = None
) -> ModelSettings:
    """Inputs ``a``, ``b``, ... of these shapes."""
    inputs = {
        name: InputSettings(shape, layout="any", dynamic_batch=dynamic)
        for name, shape in zip("abc", shapes, strict=False)
    }
    return ModelSettings(inputs, factory=None if path else "net.py:build", path=path, outputs=outputs)


def samples(model: ModelSettings, count: int = 2) -> list[Sample]:
    random = np.random.default_rng(0)
    return [
        Sample(
            f"s{index}", {name: random.standard_normal(given.shape, np.float32) for name, given in model.inputs.items()}
        )
        for index in range(count)
    ]


def exported(network: nn.Module, model: ModelSettings, folder: Path) -> FloatModel:
    torch.manual_seed(0)
    return export_torch(network.eval(), model, SETTINGS, samples(model), folder)


class Same(nn.Module):
    """TensorFlow's SAME padding as EfficientNet implementations write it."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            stride, kernel = self.conv.stride[0], self.conv.kernel_size[0]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return self.conv(functional.pad(x, pads)).mean((2, 3))


def traced(network: nn.Module, size: int, path: Path) -> FloatModel:
    """Export by the tracing exporter."""
    inputs = (torch.zeros(1, 2, size, size),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, inputs, str(path), dynamo=False, input_names=["a"], output_names=["y"], opset_version=18
        )
    return float_model(path)


class Decibels(nn.Module):
    """A logarithm that is kept from zero, as in front of many networks for sound."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.relu(x) + 1e-10)


def test_export_torch_keeps_an_addition_when_it_is_tiny(tmp_path: Path) -> None:
    model = model_settings((1, 4))
    made = exported(Decibels(), model, tmp_path)
    (answer,) = OnnxSession(made.path).run({"a": np.array([[0, -1, 1, 0]], np.float32)}).values()
    assert answer[0].tolist() == pytest.approx([-23.02585, -23.02585, 0, -23.02585])


# ---------------------------------------------------------------- the comparison


def test_compare_names_output_and_sample_when_the_tracing_exporter_was_wrong(tmp_path: Path) -> None:
    network, model = Same(2).eval(), model_settings((1, 2, 9, 9))
    wrong = traced(network, 9, tmp_path / "wrong.onnx")
    sample = samples(model)[0]
    reference = network(torch.from_numpy(sample.inputs["a"])).detach().numpy()
    answer = OnnxSession(wrong.path).run(sample.inputs)["y"]
    assert answer.shape == reference.shape
    assert np.abs(answer - reference).max() > 0.01  # the exporter divides towards zero
    with pytest.raises(ExportError, match=r"differ by .* of the output's range.*: output 'y' on sample 's[01]'"):
        compare(torch_answer(network, model), wrong, samples(model), 1e-4)


@pytest.mark.parametrize("size", [8, 9])
def test_export_torch_keeps_a_same_padding_when_it_is_python_arithmetic(tmp_path: Path, size: int) -> None:
    model = model_settings((1, 2, size, size))
    made = exported(Same(2), model, tmp_path)
    assert made.outputs[0].shape == (1, 3)


def graph_of(path: Path, bias: float = 0.0) -> FloatModel:
    """``y = a + bias`` and ``z = a * a`` for a of shape (1, 4)."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["a", "bias"], ["y"]), onnx.helper.make_node("Mul", ["a", "a"], ["z"])],
        "g", [value("a", 1, [1, 4])], [value("y", 1, [1, 4]), value("z", 1, [1, 4])],
        [onnx.numpy_helper.from_array(np.full(4, bias, np.float32), "bias")],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), str(path))
    return float_model(path)


def listed(*rows: list[float]) -> list[Sample]:
    return [Sample(f"s{index}", {"a": np.array([row], np.float32)}) for index, row in enumerate(rows)]


def answer_by_hand(sample: Sample) -> list[np.ndarray]:
    return [sample.inputs["a"], sample.inputs["a"] ** 2]


def test_compare_returns_the_error_relative_to_the_range_when_it_is_small(tmp_path: Path) -> None:
    rows = listed([1, 2, 4, -8], [0, 0, 0, 2])
    assert compare(answer_by_hand, graph_of(tmp_path / "g.onnx", 0.5), rows, 0.3) == 0.25  # 0.5 of 2 on the second


def test_compare_names_the_worst_when_several_are_wrong(tmp_path: Path) -> None:
    rows = listed([0, 0, 0, 8], [0, 0, 0, 1], [0, 0, 0, 4])
    with pytest.raises(ExportError, match=r"differ by 0\.5 .*output 'y' on sample 's1'"):
        compare(answer_by_hand, graph_of(tmp_path / "g.onnx", 0.5), rows, 1e-4)


@pytest.mark.parametrize("where", [0, 1])
def test_compare_names_the_sample_when_an_answer_is_nan(tmp_path: Path, where: int) -> None:
    rows = listed([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6])

    def answer(sample: Sample) -> list[np.ndarray]:
        y, z = answer_by_hand(sample)
        return [y * np.float32(np.nan) if sample.name == f"s{where}" else y, z]

    with pytest.raises(ExportError, match=f"differ by nan .*output 'y' on sample 's{where}'"):
        compare(answer, graph_of(tmp_path / "g.onnx"), rows, 1e-4)


def test_compare_refuses_when_there_is_no_sample(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="at least one sample"):
        compare(answer_by_hand, graph_of(tmp_path / "g.onnx"), [], 1e-4)


@pytest.mark.parametrize(
    ("answers", "message"), [(1, "has 1 outputs, the ONNX graph 2"), (2, r"shape \[4\], the ONNX graph with \[1, 4\]")]
)
def test_compare_refuses_when_outputs_are_others(tmp_path: Path, answers: int, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        compare(
            lambda sample: [sample.inputs["a"][0]] * answers, graph_of(tmp_path / "g.onnx"), listed([1, 2, 3, 4]), 1
        )


# ---------------------------------------------------------------- from PyTorch


class TwoByTwo(nn.Module):
    """Two inputs and two outputs that cannot be mistaken for each other."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.relu(b) * 3, a - 1


def test_export_torch_keeps_the_order_when_there_are_two_inputs_and_outputs(tmp_path: Path) -> None:
    made = exported(TwoByTwo(), model_settings((1, 2), (1, 3), outputs=("tripled", "less")), tmp_path)
    assert [(item.name, item.shape) for item in made.inputs] == [("a", (1, 2)), ("b", (1, 3))]
    assert [(item.name, item.shape) for item in made.outputs] == [("tripled", (1, 3)), ("less", (1, 2))]
    answers = OnnxSession(made.path).run({"a": np.array([[5, 6]], np.float32), "b": np.ones((1, 3), np.float32)})
    assert [answers[name].tolist() for name in ("tripled", "less")] == [[[3, 3, 3]], [[4, 5]]]


def test_export_torch_folds_batch_norm_and_constants_when_it_cleans(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
            self.norm.running_var.fill_(4.0)
            self.unused = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) * (torch.ones(1) + 1)

    made = exported(Net(), model_settings((1, 2, 6, 6)), tmp_path)
    graph = onnx.load(str(made.path)).graph
    assert sorted(node.op_type for node in graph.node) == ["Conv", "Mul"]
    assert sum(int(np.prod(tensor.dims)) for tensor in graph.initializer) == 4 * 2 * 9 + 4 + 1


def test_export_torch_names_a_product_when_a_square_or_quotient_is_one(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2 + x**3 + x / torch.tensor([2.0, -0.25, 8.0, 1.0]) + x / 3

    made = exported(Net(), model_settings((1, 4)), tmp_path)
    op_types = [node.op_type for node in onnx.load(str(made.path)).graph.node if node.op_type != "Add"]
    assert sorted(op_types) == ["Div", "Mul", "Mul", "Pow"]


def test_export_torch_makes_one_constant_of_weights_when_the_exporter_takes_them_apart(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recur = nn.LSTM(8, 64, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.recur(x)[0][:, -1]

    made = exported(Net(), model_settings((1, 5, 8)), tmp_path)
    op_types = [node.op_type for node in onnx.load(str(made.path)).graph.node]
    assert "LSTM" in op_types
    assert set(op_types) & {"Slice", "Concat", "Unsqueeze"} == set()


@pytest.mark.parametrize(
    ("layers", "shape", "expected"),
    [
        ((nn.BatchNorm2d(3), nn.ReLU()), (1, 3, 6, 5), ["Conv", "Relu"]),
        ((nn.BatchNorm1d(3), nn.ReLU()), (1, 3, 6), ["Conv", "Relu"]),
        ((nn.Conv2d(3, 4, 1), nn.AvgPool2d((6, 5))), (1, 3, 6, 5), ["Conv", "GlobalAveragePool"]),
        ((nn.Conv2d(3, 4, 1), nn.AvgPool2d((3, 5))), (1, 3, 6, 5), ["Conv", "AveragePool"]),
        ((nn.Conv2d(3, 4, 1), nn.AvgPool2d((6, 5), padding=2)), (1, 3, 6, 5), ["Conv", "AveragePool"]),
    ],
)
def test_export_torch_names_what_has_an_integer_kernel_when_it_cleans(
    tmp_path: Path, layers: tuple[nn.Module, ...], shape: tuple[int, ...], expected: list[str]
) -> None:
    for norm in layers:
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean = torch.tensor([0.5, -1, 2])
            norm.running_var = torch.tensor([0.25, 4, 9])
            nn.init.uniform_(norm.weight)
    made = exported(nn.Sequential(*layers), model_settings(shape), tmp_path)
    assert [node.op_type for node in onnx.load(str(made.path)).graph.node] == expected


def test_export_torch_names_the_dynamic_size_batch_when_the_batch_is(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    made = exported(network, model_settings((1, 2, 6, 6), dynamic=True), tmp_path)
    assert made.inputs[0].shape == ("batch", 2, 6, 6)
    assert made.outputs[0].shape == ("batch", 3)
    assert OnnxSession(made.path).run({"a": np.zeros((5, 2, 6, 6), np.float32)})[made.outputs[0].name].shape == (5, 3)
    names = {dim.dim_param for value in onnx.load(str(made.path)).graph.value_info
             for dim in value.type.tensor_type.shape.dim}  # fmt: skip
    assert names <= {"", "batch"}


def test_export_torch_writes_the_same_bytes_when_called_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        exported(Same(2), model_settings((1, 2, 8, 8)), tmp_path / name)
    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "two/model.onnx").read_bytes()


def test_export_torch_says_why_when_the_network_cannot_take_the_input(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch\.onnx cannot export the network"):
        exported(nn.Linear(5, 2), model_settings((1, 4)), tmp_path)


def test_export_torch_refuses_when_an_output_is_not_float(tmp_path: Path) -> None:
    class Argmax(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(1)

    with pytest.raises(ExportError, match=r"output 'class' is int64, expected float32"):
        exported(Argmax(), model_settings((1, 4), outputs=("class",)), tmp_path)


def test_export_torch_refuses_when_a_program_takes_another_shape(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(4, 2).eval(), (torch.zeros(1, 4),))
    model = model_settings((1, 5), path=tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"input 'a' has shape \[1, 4\], the recipe says \[1, 5\]"):
        export_torch(program, model, SETTINGS, samples(model), tmp_path)
