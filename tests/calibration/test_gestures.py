"""The gestures: whole people held out, windows balanced in every prefix, and nothing run that the file asks for."""

import pickle
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgeopt.calibration.gestures.preprocess import Windows, open_dataset, read_recordings
from edgeopt.errors import DataError, RecipeError
from edgeopt.provenance import locate
from edgeopt.samples import Split
from edgeopt.settings import InputSettings

if find_spec("seglearn") is None:
    pytest.skip("seglearn is not installed: pip install 'edgeopt[demo]'", allow_module_level=True)

MOTION = {"motion": InputSettings((1, 6, 128), layout="any")}
PEOPLE = {"unseen_people": [3, 7]}


def people_in(windows: Windows) -> set[int]:
    return {recording.person for recording, _ in windows.places}


def test_open_dataset_holds_out_whole_people_when_they_are_named() -> None:
    splits: tuple[Split, ...] = ("train", "calibration", "held_out")
    train, calibration, held_out = (open_dataset(split, MOTION, PEOPLE) for split in splits)

    assert people_in(held_out) == {3, 7}
    assert people_in(train) == people_in(calibration) == set(range(1, 11)) - {3, 7}
    assert {sample.name for sample in calibration} < {sample.name for sample in train}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_open_dataset_takes_each_recording_in_turn_when_opened(split: Split) -> None:
    windows = open_dataset(split, MOTION, PEOPLE)
    num_recordings = 14 * len(people_in(windows))
    first = [windows[index] for index in range(2 * num_recordings)]

    assert Counter(sample.label for sample in first) == dict.fromkeys(range(7), 2 * num_recordings // 7)
    assert {sample.name.rpartition("/")[2] for sample in first[:num_recordings]} == {"0"}
    assert {sample.name.rpartition("/")[2] for sample in first[num_recordings:]} == {"64"}


def test_open_dataset_gives_what_the_package_loads_when_read_by_it() -> None:
    table = np.load(locate("seglearn:data/watch_dataset.npy", Path()), allow_pickle=True).item()
    window = next(
        sample for sample in open_dataset("held_out", MOTION, PEOPLE) if sample.name == "gestures/7/IR/left/64"
    )
    (index,) = (
        number
        for number, (person, exercise, side) in enumerate(zip(table["subject"], table["y"], table["side"], strict=True))
        if (person, exercise, side) == (7, table["y_labels"].index("IR"), 0)
    )

    assert window.label == 3
    assert window.inputs["motion"].dtype == np.float32
    assert np.array_equal(window.inputs["motion"][0], table["X"][index][64:192].T.astype(np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unseen": [1]}, "unknown option 'unseen'"),
        ({"unseen_people": [0]}, "some of the numbers 1 to 10"),
        ({"unseen_people": [True]}, "some of the numbers 1 to 10"),
        ({"unseen_people": []}, "some of the numbers 1 to 10"),
        ({"unseen_people": list(range(1, 11))}, "some of the numbers 1 to 10"),
    ],
)
def test_open_dataset_refuses_options_when_they_split_nothing(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        open_dataset("train", MOTION, options)


@pytest.mark.parametrize("shape", [(1, 3, 128), (1, 6, 8, 16), (1, 128, 6)])
def test_open_dataset_refuses_when_the_input_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected one of shape \[1, 6, steps\]"):
        open_dataset("train", {"motion": InputSettings(shape, layout="any")}, PEOPLE)


def test_read_recordings_runs_nothing_when_the_file_asks_for_it(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return marker.touch, ()

    content = locate("seglearn:data/watch_dataset.npy", Path()).read_bytes()
    path = tmp_path / "watch_dataset.npy"
    path.write_bytes(content[: content.index(b"\n") + 1] + pickle.dumps(Attack()))
    np.load(path, allow_pickle=True)  # the attack works where it is let
    assert marker.exists()
    marker.unlink()

    with pytest.raises(DataError, match=r"builtins\.getattr, which makes no array"):
        read_recordings(path)
    assert not marker.exists()


def test_read_recordings_refuses_when_the_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "watch_dataset.npy"
    path.write_bytes(locate("seglearn:data/watch_dataset.npy", Path()).read_bytes()[:100_000])

    with pytest.raises(DataError, match="is not the file that seglearn carries"):
        read_recordings(path)
