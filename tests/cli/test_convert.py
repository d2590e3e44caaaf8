"""``edgeopt convert`` in processes of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeopt
from edgeopt.errors import ModelError

ROOT = Path(edgeopt.__file__).parent.parent


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", "edgeopt", "convert", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def write_model(path: Path, *op_types: str, opset: int = 18, shape: tuple[int | str, ...] = (1, 3, 4, 4)) -> Path:
    names = ["image", *(f"value_{index}" for index in range(len(op_types)))]
    nodes = [
        helper.make_node(op_type, [names[i]], [names[i + 1]], name=f"node_{i}") for i, op_type in enumerate(op_types)
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path)
    return path


def test_convert_writes_a_file_that_answers_when_the_model_is_float(tmp_path):
    write_model(tmp_path / "model.onnx", "Relu", "Sqrt")
    done = run("model.onnx", "model.tflite", "--json", "-", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["operators"] == {"RELU": 1, "SQRT": 1}
    from ai_edge_litert.interpreter import Interpreter

    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    (answer,) = Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()(image=x).values()
    np.testing.assert_allclose(answer, np.sqrt(np.maximum(x, 0)), rtol=1e-6)


def test_convert_takes_the_layout_when_given(tmp_path):
    write_model(tmp_path / "model.onnx", "Relu")
    done = run("model.onnx", "model.tflite", "--layout", "image=NHWC", "--json", "-", folder=tmp_path)
    assert json.loads(done.stdout)["border"]["inputs"][0]["shape"] == [1, 4, 4, 3]


def test_convert_gives_the_layout_when_asked_of_an_output(tmp_path):
    write_model(tmp_path / "model.onnx", "Relu")
    layouts = ["--layout", "image=NHWC", "--output-layout", "value_0=NHWC"]
    done = run("model.onnx", "model.tflite", *layouts, "--json", "-", folder=tmp_path)
    described = json.loads(done.stdout)
    assert described["border"]["outputs"][0]["shape"] == [1, 4, 4, 3]
    assert described["operators"] == {"RELU": 1}


def test_convert_refuses_when_a_layout_names_no_output(tmp_path):
    write_model(tmp_path / "model.onnx", "Relu")
    done = run("model.onnx", "model.tflite", "--output-layout", "mask=NHWC", folder=tmp_path)
    assert done.returncode == 9
    assert "layout of output 'mask': got no such output" in done.stderr


def test_convert_fixes_dynamic_axes_when_sizes_are_given(tmp_path):
    write_model(tmp_path / "model.onnx", "Relu", "Sqrt", shape=("n", 3, "height", "width"))
    done = run("model.onnx", "model.tflite", "--input-shape", "image=1,3,4,6", "--json", "-", folder=tmp_path)
    border = json.loads(done.stdout)["border"]
    assert [border[side][0]["shape"] for side in ("inputs", "outputs")] == [[1, 3, 4, 6], [1, 3, 4, 6]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("image=1,4,4,6", r"input 'image': got the shape \[1, 4, 4, 6\], the model takes \['any', 3, 'any', 'any'\]"),
        ("image=1,3,4", "the model takes"),
        ("image=1,3,0,4", "the model takes"),
        ("picture=1,3,4,4", "the model has no input 'picture'"),
        ("image=1,3,x", "expected NAME=SIZE,SIZE,..."),
        ("1,3,4,4", "expected NAME=SIZE,SIZE,..."),
    ],
)
def test_convert_says_so_when_sizes_do_not_fit(given, said, tmp_path):
    write_model(tmp_path / "model.onnx", "Relu", shape=("n", 3, "height", "width"))
    done = run("model.onnx", "model.tflite", "--input-shape", given, folder=tmp_path)
    assert done.returncode == 2
    assert re.search(said, " ".join(done.stderr.split()))
    assert not (tmp_path / "model.tflite").exists()


def test_convert_names_every_node_and_writes_nothing_when_refused(tmp_path):
    write_model(tmp_path / "model.onnx", "Bernoulli", "Relu", "Bernoulli")
    (tmp_path / "model.tflite").write_bytes(b"old")
    done = run("model.onnx", "model.tflite", folder=tmp_path)
    assert done.returncode == 9
    assert "2 nodes of ONNX opset 18" in done.stderr
    assert "RandomUniformLike 'node_0_RandomUniformLike'" in done.stderr
    assert "RandomUniformLike 'node_2_RandomUniformLike'" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "model.tflite").read_bytes() == b"old"


def test_convert_lowers_when_the_opset_is_older_than_13(tmp_path):
    write_model(tmp_path / "model.onnx", "Relu", opset=11)
    assert run("model.onnx", "model.tflite", folder=tmp_path).returncode == 0


@pytest.mark.parametrize("opset", [13, 18, onnx.defs.onnx_opset_version()])
def test_convert_lowers_when_the_opset_is_supported(opset, tmp_path):
    write_model(tmp_path / "model.onnx", "Relu", "Softmax", opset=opset)
    edgeopt.convert(tmp_path / "model.onnx", tmp_path / "model.tflite")
    assert (tmp_path / "model.tflite").read_bytes()[4:8] == b"TFL3"


@pytest.mark.parametrize("content", [b"", b"\x08not onnx", None])
def test_convert_says_so_when_the_file_is_no_model(content, tmp_path):
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        edgeopt.convert(tmp_path / "model.onnx", tmp_path / "model.tflite")
    assert not (tmp_path / "model.tflite").exists()


def test_convert_refuses_when_the_weights_take_over_2_gb(tmp_path):
    path = write_model(tmp_path / "model.onnx", "Relu")
    model = onnx.load(path)
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "huge")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "huge.data"), ("length", str(3 << 30))):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(edgeopt.EdgeoptError, match=r"3,221,\d+,\d+ bytes"):
        edgeopt.convert(path, tmp_path / "model.tflite")


def test_convert_says_what_is_wrong_when_a_layout_is_misspelt(tmp_path):
    write_model(tmp_path / "model.onnx", "Relu")
    done = run("model.onnx", "model.tflite", "--layout", "image=HWC", folder=tmp_path)
    assert done.returncode == 2
    assert "expected NAME=NCHW or NAME=NHWC" in done.stderr
