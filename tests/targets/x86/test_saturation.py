"""Weights of 7 bits on a CPU without VNNI: ONNX Runtime on an emulated Haswell, whose products saturate at 16 bits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeopt.artifacts import FloatModel, Ranges, TensorInfo, TensorRange
from edgeopt.devices.debian import program_in
from edgeopt.devices.device import DeviceFacts, RunRequest, unfit
from edgeopt.devices.local import LocalDevice
from edgeopt.devices.qemu import Emulation
from edgeopt.quantize.border import border_of
from edgeopt.quantize.qdq import quantize
from edgeopt.quantize.scheme import ASYMMETRIC
from edgeopt.session import OnnxSession
from edgeopt.settings import InputSettings, QuantizeSettings
from edgeopt.target import LoweringRequest, find_target, load_backend

RUN = """
import json, sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
answers = []
for path in sys.argv[1:]:
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    answers.append(session.run(None, {"x": np.ones((1, 256), np.float32)})[0].ravel().tolist())
print(json.dumps(answers))
"""


def lowered(folder: Path, *, reduce_range: bool) -> tuple[Path, tuple[str, ...]]:
    """Return the x86 model of a product whose weights and inputs are all as large as can be, and what it needs."""
    folder.mkdir()
    value = helper.make_tensor_value_info
    values = np.full((256, 16), 0.1, np.float32)
    values[0] = 0.09  # else they were integers of 4 bits, and products of these do not saturate
    weight = numpy_helper.from_array(values, "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "g", [value("x", 1, [1, 256])], [value("y", 1, [1, 16])], [weight])
    path = folder / "float.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    source = FloatModel(path, (TensorInfo("x", "float32", (1, 256)),), (TensorInfo("y", "float32", (1, 16)),))
    ranges = Ranges(path, {"x": TensorRange(0.0, 1.0), "y": TensorRange(0.0, 30.0)}, 1)
    made = quantize(source, ranges, ASYMMETRIC, QuantizeSettings(reduce_range=reduce_range), folder)
    border = border_of(made, ranges, {"x": InputSettings((1, 256), layout="any")})
    model = load_backend(find_target("x86")).lower(made, border, LoweringRequest({}, {}, 1), folder)
    return model.path, model.instruction_sets


def test_answers_of_7_bits_are_right_on_a_cpu_without_vnni_when_those_of_8_bits_saturate(
    tmp_path: Path, emulation: Emulation
) -> None:
    (full, needed), (reduced, nothing) = (lowered(tmp_path / n, reduce_range=r) for n, r in (("8", False), ("7", True)))
    assert needed == ("avx_vnni", "avx512_vnni")
    assert nothing == ()
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [
        *program_in(emulation.folder / "host", "usr/bin/qemu-x86_64"),
        "-cpu",
        "Haswell",
        sys.executable,
        str(script),
        str(full),
        str(reduced),
    ]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    on_haswell = np.array(json.loads(done.stdout))
    here = np.array(
        [OnnxSession(path).run({"x": np.ones((1, 256), np.float32)})["y"].ravel() for path in (full, reduced)]
    )
    np.testing.assert_allclose(here, 25.6, rtol=0.02)
    np.testing.assert_array_equal(on_haswell[1], here[1])
    assert (on_haswell[0] < 14).all()  # half of it is lost


def reasons(features: tuple[str, ...], needed: list[str]) -> list[str]:
    facts: DeviceFacts = replace(LocalDevice().facts(), features=features)
    manifest: Mapping[str, object] = {"model": {"format": "onnx", "instruction_sets": needed}, "files": {}}
    return list(unfit(facts, manifest, RunRequest()))


@pytest.mark.parametrize(
    ("features", "needed", "refused"),
    [
        (("avx2",), ["avx_vnni", "avx512_vnni"], True),
        (("avx2", "avx512_vnni"), ["avx_vnni", "avx512_vnni"], False),
        (("avx2",), [], False),
        ((), ["avx_vnni"], False),  # it does not say
    ],
)
def test_a_device_is_refused_when_its_cpu_would_saturate(
    features: tuple[str, ...], needed: list[str], refused: bool
) -> None:
    found = reasons(features, needed)
    assert bool(found) is refused
    assert not refused or "quantize.reduce_range = true" in found[0]
