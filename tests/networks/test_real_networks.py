"""Networks with the weights that they were published with: float, int8, and what is left of them in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from judging import HEADER, Judged
from real_networks import NETWORKS, basic_pitch, package_file, text_direction
from tflite_runtimes import run_tflite

import edgeopt
from edgeopt.errors import LoweringError
from edgeopt.session import OnnxSession
from edgeopt.tflite.inspect import read_tflite

pytestmark = [
    pytest.mark.slow,
    # What torch and transformers say about themselves while they export.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MAX_FLOAT_ERROR = 1e-4  # of the output's range
MIN_INTEGER_SHARE = {"MiniLM": 0.85}  # attention multiplies what it has computed; of all others 0.95
MAX_TRANSPOSES = {"MiniLM": 24}  # of the heads in six layers; of all others none


@pytest.fixture
def judged(judged_network: Judged) -> Judged:
    return judged_network


@pytest.mark.parametrize("name", NETWORKS)
def test_float_file_answers_as_onnxruntime_when_network_is_trained(name: str, judged: Judged) -> None:
    assert judged(name).float_error < MAX_FLOAT_ERROR


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_file_runs_on_integers_when_network_is_trained(name: str, judged: Judged) -> None:
    assert judged(name).integer_share >= MIN_INTEGER_SHARE.get(name, 0.95)


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_file_answers_as_onnxruntime_bit_for_bit_when_network_is_trained(name: str, judged: Judged) -> None:
    facts = judged(name)
    assert (facts.equal_share, facts.worst_steps) == (1.0, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_files_have_only_the_transposes_of_the_network_when_network_is_trained(name: str, judged: Judged) -> None:
    facts = judged(name)
    assert max(facts.float_transposes, facts.transposes) <= MAX_TRANSPOSES.get(name, 0)


def test_package_file_says_so_when_a_package_is_missing() -> None:
    missing = "no_such_network"
    with pytest.raises(ModuleNotFoundError, match="no_such_network is not installed; the README's second command"):
        package_file(missing, "weights.pth")
    with pytest.raises(FileNotFoundError, match=r"the installed skimage has no data/weights\.pth"):
        package_file("skimage", "data/weights.pth")


@pytest.mark.parametrize("name", ["basic-pitch", "magika"])
def test_convert_keeps_the_batch_open_when_the_published_file_does(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]()
    assert isinstance(network.source, Path)
    edgeopt.convert(network.source, tmp_path / "model.tflite")
    (key,) = network.held_out[0]
    feeds = {key: np.concatenate([feeds[key] for feeds in network.held_out[:3]])}
    actual = run_tflite((tmp_path / "model.tflite").read_bytes(), feeds)
    for output, reference in OnnxSession(network.source).run(feeds).items():
        assert np.abs(actual[output] - reference).max() < MAX_FLOAT_ERROR * np.ptp(reference)


def test_convert_fixes_height_and_width_when_the_published_file_leaves_them_open(tmp_path: Path) -> None:
    network = text_direction()
    assert isinstance(network.source, Path)
    with pytest.raises(LoweringError, match="the shape of its result cannot be inferred") as caught:
        edgeopt.convert(network.source, tmp_path / "model.tflite")
    assert "--input-shape" in str(caught.value.hint)
    edgeopt.convert(network.source, tmp_path / "model.tflite", input_shapes={"x": (1, 3, 48, 192)})
    (reference,) = OnnxSession(network.source).run(network.held_out[0]).values()
    (actual,) = run_tflite((tmp_path / "model.tflite").read_bytes(), network.held_out[0]).values()
    assert np.abs(actual - reference).max() < MAX_FLOAT_ERROR * np.ptp(reference)


def test_basic_pitch_equals_the_tflite_file_of_its_authors_when_sound_is_the_same(judged: Judged) -> None:
    network, content = basic_pitch(), judged("basic-pitch").float_file
    assert isinstance(network.source, Path)
    published = network.source.with_suffix(".tflite").read_bytes()
    for feeds in network.held_out:
        (sound,) = feeds.values()
        for ours, theirs in zip(answers(content, sound), answers(published, sound), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(read_tflite(content).operators) <= len(read_tflite(published).operators)


def answers(content: bytes, sound: np.ndarray) -> list[np.ndarray]:
    """Return what a file with one input answers, in the order of the outputs' names, which are TensorFlow's in both."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], sound.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sound)
    interpreter.invoke()
    outputs = sorted(interpreter.get_output_details(), key=lambda output: output["name"])
    return [interpreter.get_tensor(output["index"]) for output in outputs]


def test_table_has_every_network_when_printed(judged: Judged, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [judged(name).row for name in NETWORKS]
    with capsys.disabled():
        print(f"\n{HEADER}", *rows, f"{len(rows)} networks with trained weights", sep="\n")
    assert len(rows) == 12
