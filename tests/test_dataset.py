"""Data set folders: what is found, what is refused, and on what a cache key depends."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeopt.dataset import checked_samples, find_dataset, sample_digest
from edgeopt.errors import DataError, MissingDependencyError
from edgeopt.samples import Sample
from edgeopt.settings import CalibrationSettings, InputSettings

INPUTS = {"image": InputSettings((1, 3, 4, 4))}


class Listed:
    """A data set of the given arrays."""

    def __init__(self, *arrays: np.ndarray, name: str = "image") -> None:
        self.samples = [Sample(f"s{index}", {name: array}) for index, array in enumerate(arrays)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def image(value: float = 0.5, shape: tuple[int, ...] = (1, 3, 4, 4), dtype: str = "float32") -> np.ndarray:
    return np.full(shape, value, dtype)


def dataset_folder(folder: Path, facts: str = "", preprocess: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "calibration.toml").write_text('title = "t"\nsource = "s"\nlicence = "l"\n' + facts)
    (folder / "preprocess.py").write_text(preprocess or "def open_dataset(split, inputs, options):\n    return []\n")
    return folder


def settings(dataset: str = "mine", options: Mapping[str, object] | None = None) -> CalibrationSettings:
    return CalibrationSettings(dataset, options=options or {})


def test_checked_samples_yields_the_first_ones_when_all_fit() -> None:
    found = list(checked_samples(Listed(image(), image(1), image(2)), 2, INPUTS, "calibration"))
    assert [sample.name for sample in found] == ["s0", "s1"]


def test_checked_samples_refuses_when_there_are_too_few() -> None:
    with pytest.raises(DataError, match=r"the held_out split has 1 samples, the recipe asks for 2"):
        list(checked_samples(Listed(image()), 2, INPUTS, "held_out"))


BAD = {
    "it is NaN": (Listed(image(), image(np.nan)), "sample 's1': input 'image' has NaN or infinite values"),
    "it is infinite": (Listed(image(-np.inf)), "sample 's0': input 'image' has NaN or infinite"),
    "it is channels last": (
        Listed(image(shape=(1, 4, 4, 3))),
        r"is float32\[1, 4, 4, 3\], expected float32\[1, 3, 4, 4\]",
    ),
    "it has no batch": (Listed(image(shape=(3, 4, 4))), r"is float32\[3, 4, 4\], expected"),
    "it is float64": (Listed(image(dtype="float64")), r"is float64\[1, 3, 4, 4\], expected float32"),
    "it is uint8": (Listed(image(1, dtype="uint8")), r"is uint8\[1, 3, 4, 4\], expected float32"),
    "it has another input": (Listed(image(), name="img"), r"has the inputs \['img'\], the recipe \['image'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_checked_samples_names_the_sample_when(case: str) -> None:
    dataset, message = BAD[case]
    with pytest.raises(DataError, match=message):
        list(checked_samples(dataset, len(dataset), INPUTS, "calibration"))


def test_checked_samples_reads_one_at_a_time_when_iterated() -> None:
    class Counting(Listed):
        read = 0

        def __getitem__(self, index: int) -> Sample:
            self.read += 1
            return super().__getitem__(index)

    dataset = Counting(image(), image(), image())
    samples = checked_samples(dataset, 3, INPUTS, "calibration")
    next(samples)
    assert dataset.read == 1


def test_find_dataset_asks_did_you_mean_when_the_name_is_misspelt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)there is no data set 'mnist5'.*did you mean 'mnist5k'"):
        find_dataset(settings("mnist5"), tmp_path)


def test_find_dataset_takes_the_folder_of_the_recipe_when_one_is_built_in_too(tmp_path: Path) -> None:
    dataset_folder(tmp_path / "mnist5k")
    assert find_dataset(settings("mnist5k"), tmp_path).path == tmp_path / "mnist5k"


FACTS = {
    "a key is unknown": ('license = "MIT"', r"(?s)mine/calibration\.toml: unknown key 'license'.*'licence'"),
    "it is no TOML": ("title =", r"mine/calibration\.toml: not valid TOML"),
    "a value has another type": ("package = 3", "package: expected a string, got the integer 3"),
    "preprocessing is no section": ('preprocessing = "none"', "preprocessing: expected a section"),
    "a value cannot be written as JSON": ("[preprocessing]\nsince = 2020-01-01", "preprocessing.*since"),
}


@pytest.mark.parametrize("case", FACTS)
def test_find_dataset_refuses_calibration_toml_when(tmp_path: Path, case: str) -> None:
    text, message = FACTS[case]
    dataset_folder(tmp_path / "mine", text)
    with pytest.raises(DataError, match=message):
        find_dataset(settings(), tmp_path)


def test_open_refuses_when_the_split_is_empty(tmp_path: Path) -> None:
    dataset_folder(tmp_path / "mine")
    with pytest.raises(DataError, match="data set 'mine' has no samples in its calibration split"):
        find_dataset(settings(), tmp_path).open("calibration", INPUTS)


@pytest.mark.parametrize(
    ("preprocess", "message"), [("x = 1\n", "has no function 'open_dataset'"), (None, "has no preprocess.py")]
)
def test_open_refuses_when_there_is_nothing_to_open(tmp_path: Path, preprocess: str | None, message: str) -> None:
    folder = dataset_folder(tmp_path / "mine", preprocess=preprocess or "")
    if preprocess is None:
        (folder / "preprocess.py").unlink()
    with pytest.raises(DataError, match=message):
        find_dataset(settings(), tmp_path).open("calibration", INPUTS)


PATHS = 'path_options = ["photos", "more"]\n'


def test_find_dataset_makes_paths_absolute_when_they_are_path_options(tmp_path: Path) -> None:
    dataset_folder(tmp_path / "mine", PATHS)
    (tmp_path / "pictures").mkdir()
    found = find_dataset(settings(options={"photos": "pictures", "range": "mine"}), tmp_path)
    assert found.options == {"photos": str(tmp_path / "pictures"), "range": "mine"}


def test_find_dataset_refuses_when_a_path_option_leads_nowhere(tmp_path: Path) -> None:
    dataset_folder(tmp_path / "mine", PATHS)
    with pytest.raises(DataError, match=r"calibration\.options\.photos: there is no .*/pictures"):
        find_dataset(settings(options={"photos": "pictures"}), tmp_path)


def test_find_dataset_takes_the_default_when_the_recipe_leaves_an_option_out(tmp_path: Path) -> None:
    folder = dataset_folder(tmp_path / "mine", f'{PATHS}install = "fetch it"\n[defaults]\nphotos = "{tmp_path}/all"\n')
    with pytest.raises(MissingDependencyError, match=r"there is no .*/all\n  hint: fetch it"):
        find_dataset(settings(), tmp_path)
    (tmp_path / "all").mkdir()
    assert find_dataset(settings(), tmp_path).options == {"photos": str(tmp_path / "all")}
    assert find_dataset(settings(options={"photos": str(folder)}), tmp_path).options == {"photos": str(folder)}


def key_of(folder: Path, options: Mapping[str, object]) -> tuple[str, ...]:
    return find_dataset(settings(options=options), folder).key()


def test_key_changes_when_code_facts_options_or_samples_do(tmp_path: Path) -> None:
    folder = dataset_folder(tmp_path / "mine", PATHS)
    for name, text in {"photos/a/0.npy": "1", "photos/b/0.npy": "2"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    options: dict[str, object] = {"photos": "photos", "range": "0-1"}
    keys = [key_of(tmp_path, options), key_of(tmp_path, {**options, "range": "0-255"})]
    (tmp_path / "photos/a/0.npy").write_text("2")
    (tmp_path / "photos/b/0.npy").write_text("1")
    keys.append(key_of(tmp_path, options))
    (folder / "preprocess.py").write_text("def open_dataset(split, inputs, options):\n    return [1]\n")
    keys.append(key_of(tmp_path, options))
    assert len(set(keys)) == len(keys)


def test_key_is_the_same_when_everything_was_moved(tmp_path: Path) -> None:
    keys = []
    for place in ("one", "two"):
        dataset_folder(tmp_path / place / "mine", PATHS)
        (tmp_path / place / "photos").mkdir()
        (tmp_path / place / "photos" / "0.npy").write_text("1")
        keys.append(key_of(tmp_path / place, {"photos": "photos"}))
    assert keys[0] == keys[1]


def test_sample_digest_goes_by_content_when_names_differ() -> None:
    one, same = Sample("a", {"image": image()}), Sample("b", {"image": image()})
    assert sample_digest(one) == sample_digest(same)
    assert sample_digest(one) != sample_digest(Sample("a", {"image": image(0.6)}))
    assert sample_digest(one) != sample_digest(Sample("a", {"other": image()}))


@pytest.mark.parametrize(
    ("label", "number"),
    [(3, 3), (np.int64(3), 3), (np.array(3), 3), (None, None), (np.zeros(2, int), None), (0.5, None)],
)
def test_class_number_is_there_when_the_label_is_a_class(label: object, number: int | None) -> None:
    assert Sample("s", {}, label).class_number == number  # type: ignore[arg-type]
