"""Samples from a user's own .npy and .npz files."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from edgeopt.dataset import DatasetFolder, checked_samples, find_dataset
from edgeopt.errors import DataError, RecipeError
from edgeopt.samples import Dataset, Split
from edgeopt.settings import CalibrationSettings, InputSettings

IMAGE = {"image": InputSettings((1, 1, 2, 2))}
BOTH = {"image": InputSettings((1, 1, 2, 2)), "state": InputSettings((1, 3), layout="any")}


def image(value: float, batch: bool = False) -> np.ndarray:
    return np.full((1, 1, 2, 2) if batch else (1, 2, 2), value, np.float32)


def found(folder: Path, **options: str) -> DatasetFolder:
    return find_dataset(CalibrationSettings("arrays", options=options), folder)


def opened(folder: Path, inputs: dict[str, InputSettings] = IMAGE, split: Split = "calibration") -> Dataset:
    """Open ``samples`` or ``samples.npz`` beside a recipe in ``folder``."""
    name = "samples" if (folder / "samples").is_dir() else "samples.npz"
    return found(folder, **{split: name}).open(split, inputs)


def values(dataset: Dataset) -> list[float]:
    return [float(dataset[index].inputs["image"].flat[0]) for index in range(len(dataset))]


def saved(folder: Path, name: str, array: np.ndarray | None = None, **arrays: np.ndarray) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if array is not None else np.savez(path, **arrays)


@pytest.mark.parametrize("batch", [False, True])
def test_open_dataset_reads_files_in_order_of_name_when_it_is_a_folder_of_npy(tmp_path: Path, batch: bool) -> None:
    for index in (2, 0, 1):
        saved(tmp_path, f"samples/{index}.npy", image(index, batch))
    (tmp_path / "samples" / "notes.txt").write_text("not a sample")
    dataset = opened(tmp_path)
    assert values(dataset) == [0.0, 1.0, 2.0]
    assert [sample.name for sample in checked_samples(dataset, 2, IMAGE, "calibration")] == ["0.npy", "1.npy"]
    assert dataset[0].label is None


def test_open_dataset_reads_inputs_and_label_by_name_when_it_is_a_folder_of_npz(tmp_path: Path) -> None:
    saved(tmp_path, "samples/a.npz", state=np.arange(3, dtype=np.float32), image=image(5), label=np.array(7))
    sample = opened(tmp_path, BOTH)[0]
    assert list(sample.inputs) == ["image", "state"]
    assert (sample.inputs["state"].tolist(), sample.label) == ([[0.0, 1.0, 2.0]], 7)


def test_open_dataset_takes_rows_when_it_is_one_npz(tmp_path: Path) -> None:
    stack = np.stack([image(index) for index in range(3)])
    saved(tmp_path, "samples.npz", image=stack, state=np.zeros((3, 3), np.float32), labels=np.array([4, 5, 6]))
    dataset = opened(tmp_path, BOTH, "train")
    assert values(dataset) == [0.0, 1.0, 2.0]
    assert [(dataset[index].name, dataset[index].label) for index in (0, 2)] == [
        ("samples.npz[0]", 4),
        ("samples.npz[2]", 6),
    ]
    with pytest.raises(IndexError):
        dataset[3]


def test_open_dataset_runs_no_code_when_a_file_is_a_pickle(tmp_path: Path) -> None:
    class Marking:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'marker')!r}, 'w').close()",)

    saved(tmp_path, "samples/a.npy", np.array([Marking()], object))
    (tmp_path / "samples" / "b.npy").write_bytes(pickle.dumps(Marking()))
    saved(tmp_path, "objects/c.npz", image=np.array([Marking()], object))
    (tmp_path / "marker").unlink(missing_ok=True)
    dataset = opened(tmp_path)
    objects = found(tmp_path, held_out="objects").open("held_out", IMAGE)
    for one, index in ((dataset, 0), (dataset, 1), (objects, 0)):
        with pytest.raises(DataError, match=r"\.np. cannot be read as \.np. without running code"):
            one[index]
    assert not (tmp_path / "marker").exists()


WRONG = {
    "it is float64": (image(1).astype(np.float64), r"a\.npy: 'image' is float64, expected float32"),
    "it is uint8": (image(1).astype(np.uint8), "'image' is uint8, expected float32"),
    "its bytes are swapped": (image(1).astype(">f4"), "'image' is >f4, expected float32"),
    "it has another shape": (
        np.zeros((2, 2, 1), np.float32),
        r"'image' has shape \[2, 2, 1\], expected \[1, 2, 2\]",
    ),
    "it is several samples": (np.zeros((5, 1, 2, 2), np.float32), r"has shape \[5, 1, 2, 2\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_open_dataset_refuses_an_array_when(tmp_path: Path, case: str) -> None:
    array, message = WRONG[case]
    saved(tmp_path, "samples/a.npy", array)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)[0]


@pytest.mark.parametrize("label", [np.array([[0, -1], [1, 1]]), np.array([0.5, -2.5], np.float32), np.array(0.25)])
def test_open_dataset_gives_the_array_when_a_label_is_a_mask_or_a_target(tmp_path: Path, label: np.ndarray) -> None:
    saved(tmp_path, "samples/a.npz", image=image(1), label=label)
    assert np.array_equal(opened(tmp_path)[0].label, label)
    (tmp_path / "samples/a.npz").unlink()
    (tmp_path / "samples").rmdir()
    saved(tmp_path, "samples.npz", image=np.stack([image(1), image(2)]), labels=np.stack([label, label]))
    assert np.array_equal(opened(tmp_path)[1].label, label)


@pytest.mark.parametrize("label", [np.array(True), np.array("cat"), np.array(-1)])
def test_open_dataset_refuses_a_label_when_it_is_no_class_number(tmp_path: Path, label: np.ndarray) -> None:
    saved(tmp_path, "samples/a.npz", image=image(1), label=label)
    with pytest.raises(DataError, match=r"a\.npz: the label is .*, expected a class number"):
        opened(tmp_path)[0]


NAMES = {
    "an input is missing": ({"img": image(1)}, r"(?s)has no array 'image'.*did you mean 'img'"),
    "an array is too many": ({"image": image(1), "labels": np.array([1])}, r"(?s)has an array 'labels'.*'label'"),
}


@pytest.mark.parametrize("case", NAMES)
def test_open_dataset_refuses_a_file_when(tmp_path: Path, case: str) -> None:
    arrays, message = NAMES[case]
    saved(tmp_path, "samples/a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)[0]


def test_open_dataset_refuses_when_arrays_have_different_lengths(tmp_path: Path) -> None:
    saved(tmp_path, "samples.npz", image=np.zeros((3, 1, 2, 2), np.float32), labels=np.array([1, 2]))
    with pytest.raises(DataError, match=r"samples\.npz has arrays of different lengths: image 3, labels 2"):
        opened(tmp_path)


def test_open_dataset_refuses_when_a_folder_is_empty_mixed_or_has_too_few_inputs(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    with pytest.raises(DataError, match=r"the folder samples holds no \.npy or \.npz file"):
        opened(tmp_path)
    saved(tmp_path, "samples/a.npy", image(1))
    with pytest.raises(DataError, match=r"a\.npy is one array, the network has the inputs image, state"):
        opened(tmp_path, BOTH)
    saved(tmp_path, "samples/b.npz", image=image(1))
    with pytest.raises(DataError, match=r"holds \.npy and \.npz files"):
        opened(tmp_path)


def test_open_dataset_refuses_when_the_npz_is_empty(tmp_path: Path) -> None:
    saved(tmp_path, "samples.npz", image=np.zeros((0, 1, 2, 2), np.float32))
    with pytest.raises(DataError, match="has no samples in its calibration split"):
        opened(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 100])
def test_open_dataset_refuses_when_the_npz_is_truncated(tmp_path: Path, keep: int) -> None:
    saved(tmp_path, "samples.npz", image=np.zeros((3, 1, 2, 2), np.float32))
    path = tmp_path / "samples.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"samples\.npz cannot be read"):
        opened(tmp_path)


def test_open_dataset_refuses_when_an_option_is_misspelt_missing_or_another_file(tmp_path: Path) -> None:
    saved(tmp_path, "one.npy", image(1))
    for options, error, message in (
        ({"heldout": "one.npy"}, RecipeError, r"(?s)unknown option 'heldout'.*did you mean 'held_out'"),
        ({"held_out": "one.npy"}, RecipeError, r"(?s)no option 'calibration'.*calibration = 'FOLDER or FILE\.npz'"),
        ({"calibration": "one.npy"}, DataError, r"arrays: one\.npy, expected a folder of \.npy"),
        ({"calibration": "nothing"}, DataError, r"calibration\.options\.calibration: there is no .*/nothing"),
    ):
        with pytest.raises(error, match=message):
            found(tmp_path, **options).open("calibration", IMAGE)


def test_key_changes_when_two_samples_of_one_name_change_places(tmp_path: Path) -> None:
    keys = []
    for first, second in ((1, 2), (2, 1)):
        saved(tmp_path, "one/0.npy", image(first))
        saved(tmp_path, "two/0.npy", image(second))
        keys.append(found(tmp_path, calibration="one", held_out="two").key())
    assert keys[0] != keys[1]
