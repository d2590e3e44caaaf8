"""The trtexec command line and the profiles that it states."""

import shlex

import pytest

from edgeopt.artifacts import TensorInfo
from edgeopt.errors import UsageError
from edgeopt.targets.cuda.profile import ShapeProfile, batch_profiles
from edgeopt.targets.cuda.trtexec import shape_flags, trtexec_command

IMAGE = TensorInfo("image", "float32", ("N", 3, 224, 224))
STATE = TensorInfo("state", "float32", ("N", 8))


def test_batch_profiles_go_from_one_to_the_maximum_when_the_batch_is_dynamic() -> None:
    assert batch_profiles([IMAGE, STATE], 16) == {
        "image": ShapeProfile((1, 3, 224, 224), (16, 3, 224, 224), (16, 3, 224, 224)),
        "state": ShapeProfile((1, 8), (16, 8), (16, 8)),
    }


def test_batch_profiles_are_none_when_the_batch_is_fixed() -> None:
    assert batch_profiles([TensorInfo("image", "float32", (1, 3, 8, 8))], 16) == {}


@pytest.mark.parametrize("shape", [(1, 3, "H", 8), ("N", 3, "H", 8)])
def test_batch_profiles_refuse_the_input_when_another_dimension_is_dynamic(shape: tuple[int | str, ...]) -> None:
    with pytest.raises(UsageError, match="only the batch may be dynamic"):
        batch_profiles([TensorInfo("image", "float32", shape)], 16)


def test_batch_profiles_refuse_the_maximum_when_it_is_zero() -> None:
    with pytest.raises(UsageError, match="max_batch must be at least 1, got 0"):
        batch_profiles([IMAGE], 0)


def test_trtexec_command_is_one_typed_build_when_the_batch_is_fixed() -> None:
    assert trtexec_command("model.onnx", "model.engine", {}) == (
        "trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped"
    )


def test_trtexec_command_states_the_shapes_when_the_batch_is_dynamic() -> None:
    assert trtexec_command("model.onnx", "model.engine", batch_profiles([IMAGE, STATE], 16)) == (
        "trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped"
        " --minShapes=image:1x3x224x224,state:1x8"
        " --optShapes=image:16x3x224x224,state:16x8"
        " --maxShapes=image:16x3x224x224,state:16x8"
    )


def test_trtexec_command_survives_the_shell_when_names_hold_blanks() -> None:
    profiles = batch_profiles([TensorInfo("my image; rm -rf $HOME", "float32", ("N", 1))], 2)
    command = trtexec_command("a model.onnx", "it's.engine", profiles)
    assert shlex.split(command)[1:3] == ["--onnx=a model.onnx", "--saveEngine=it's.engine"]
    assert shlex.split(command)[4] == "--minShapes=my image; rm -rf $HOME:1x1"


@pytest.mark.parametrize("name", ["a:b", "a,b", "a'b", "a\nb"])
def test_shape_flags_refuse_the_input_when_its_name_would_split_the_shapes(name: str) -> None:
    with pytest.raises(UsageError, match="trtexec cannot be told the shape"):
        shape_flags(batch_profiles([TensorInfo(name, "float32", ("N", 1))], 2))
