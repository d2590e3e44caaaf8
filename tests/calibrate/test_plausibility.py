"""Samples that cannot be right are noticed, with numbers; real ones of many kinds never are."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from edgeopt.calibrate.plausibility import Survey, refuse_collapse
from edgeopt.calibration.mnist5k.preprocess import open_dataset as open_digits
from edgeopt.calibration.photos.preprocess import open_dataset as open_photos
from edgeopt.errors import DataError
from edgeopt.samples import Sample
from edgeopt.settings import InputSettings

Arrays = Sequence[np.ndarray]
COUNT = 24
IMAGE = InputSettings((1, 3, 96, 96), value_range=(0.0, 1.0))
LAST = InputSettings((1, 96, 96, 3), layout="NHWC", value_range=(0.0, 1.0))


def findings(settings: InputSettings, arrays: Arrays) -> tuple[str, ...]:
    survey = Survey({"x": settings})
    arrays = [array.astype(settings.dtype) for array in arrays]
    samples = [Sample(str(index), {"x": np.ascontiguousarray(array)}) for index, array in enumerate(arrays)]
    assert list(survey.passing(samples)) == samples
    return survey.findings()


@pytest.fixture(scope="module")
def photos() -> Arrays:
    """Crops of photos, channels first, 0 to 1."""
    crops = open_photos("calibration", {"x": IMAGE}, {})
    return [crops[index].inputs["x"] for index in range(COUNT)]


def noise(array: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, int(1e6 * array.sum()))).random(array.shape)


def grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array.mean(1, keepdims=True), 3, 1)


WRONG: Mapping[str, tuple[InputSettings, Callable[[np.ndarray], np.ndarray], str]] = {
    "pixels are 0 to 255": (IMAGE, lambda x: 255 * x, r"lies in \[0, 255\], declared is \[0, 1\]: 255 times as wide"),
    "they are divided twice": (IMAGE, lambda x: x / 255, r"0\.39% of it is used; normalized twice"),
    "they are normalized twice": (
        InputSettings(IMAGE.shape, value_range=(-2.1, 2.7)),
        lambda x: ((x - 0.45) / 0.22 - 0.45) / 0.22,
        r"declared is \[-2\.1, 2\.7\]: 4\.\d+ times as wide; another normalization, or one done twice",
    ),
    "0 to 1 where 0 to 255 is declared": (
        InputSettings(IMAGE.shape, value_range=(0.0, 255.0)), lambda x: x, "0 to 1 where 0 to 255 was meant",
    ),
    "channels last are taken for first": (
        IMAGE, lambda x: x.transpose(0, 2, 3, 1).reshape(x.shape), "declared NCHW, but its bytes make a smoother image",
    ),
    "grey channels last are taken for first": (
        IMAGE, lambda x: grey(x).transpose(0, 2, 3, 1).reshape(x.shape), "declared NCHW, but its bytes",
    ),
    "channels first are taken for last": (LAST, lambda x: x.reshape(LAST.shape), "declared NHWC, but its bytes"),
    "they are noise": (IMAGE, noise, r"looks like noise: neighbouring pixels differ by (0\.9\d|1\.0\d) "),
    "they are black": (IMAGE, np.zeros_like, "one value everywhere in 24 of 24 samples"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_survey_says_what_is_wrong_when(case: str, photos: Arrays) -> None:
    settings, change, message = WRONG[case]
    found = findings(settings, [change(photo) for photo in photos])
    assert len(found) == 1 + 2 * (case == "they are black")  # which also repeat, and use none of the declared range
    assert any(re.search(message, text) for text in found), found


def test_survey_counts_repeats_when_a_still_scene_is_filmed(photos: Arrays) -> None:
    filmed = [np.clip(photos[0] + 0.02 * (noise(photos[0], seed) - 0.5), 0, 1) for seed in range(COUNT)]
    assert findings(IMAGE, filmed) == (
        "24 of 24 samples differ from another one by less than 10% of their spread: repeats add nothing to the ranges",
    )


def test_survey_counts_samples_when_there_are_few(photos: Arrays) -> None:
    assert findings(IMAGE, photos[:3])[0].startswith("only 3 samples set the ranges")
    assert not findings(IMAGE, photos[:8])


def test_survey_finds_the_same_when_samples_come_in_another_order(photos: Arrays) -> None:
    filmed = [255 * photo for photo in (*photos[:4], *[photos[5]] * 20)]
    assert findings(IMAGE, filmed) == findings(IMAGE, filmed[::-1])
    assert len(findings(IMAGE, filmed)) == 2


def sounds() -> Arrays:
    """Vowels: harmonics of a gliding pitch under a formant, with some breath."""
    made = []
    for seed in range(COUNT):
        random = np.random.default_rng(seed)
        time = np.arange(16_000) / 16_000
        pitch = random.uniform(80, 300) * 2 ** (0.2 * np.sin(2 * np.pi * random.uniform(1, 6) * time))
        phase, formant = np.cumsum(pitch) / 16_000, random.uniform(300, 900)
        heights = (np.exp(-(((pitch * k) - formant) ** 2) / 2 / 250**2) for k in range(1, 12))
        tones = (h * np.sin(2 * np.pi * k * phase) for k, h in enumerate(heights, start=1))
        made.append(sum(tones) + 0.01 * random.standard_normal(16_000))
    return made


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """Return log energies, 49 frames x 40 bands."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 480)[::320][:49] * np.hanning(480)
    energies = (np.abs(np.fft.rfft(frames))[:, :240] ** 2).reshape(49, 40, 6).sum(2)
    return np.log(energies + 1e-6)[np.newaxis, np.newaxis]


def digits() -> Arrays:
    opened = open_digits("calibration", {"x": InputSettings((1, 1, 28, 28))}, {})
    return [opened[index].inputs["x"] for index in range(100)]


def embeddings() -> Arrays:
    """Sentences of 4 to 16 known words with the padding of all, 384 numbers a word."""
    random = np.random.default_rng(0)
    words = random.standard_normal((200, 384))
    rows = [words[random.integers(1, 200, 16)] * (np.arange(16) < random.integers(4, 17))[:, None] for _ in range(64)]
    return [row[np.newaxis] for row in rows]


def tokens(name: str) -> Arrays:
    """Token ids padded with 0, their mask, and the kind of each, which is 0 everywhere."""
    random = np.random.default_rng(0)
    lengths = random.integers(5, 33, 64)
    ids = [random.integers(1, 30_000, (1, 32)) * (np.arange(32) < length) for length in lengths]
    return [{"ids": row, "mask": row > 0, "kinds": row * 0}[name].astype(np.int64) for row in ids]


REAL: Mapping[str, tuple[InputSettings, Callable[[], Arrays]]] = {
    "handwritten digits": (InputSettings((1, 1, 28, 28), value_range=(0.0, 1.0)), digits),
    "sound": (InputSettings((1, 16_000), layout="any"), sounds),
    "spectrograms": (InputSettings((1, 1, 49, 40)), lambda: [spectrogram(sound) for sound in sounds()]),
    "token ids": (InputSettings((1, 32), "int64", "any"), lambda: tokens("ids")),
    "embeddings": (InputSettings((1, 16, 384), layout="any"), embeddings),
}


@pytest.mark.parametrize("case", REAL)
def test_survey_finds_nothing_when_samples_are(case: str) -> None:
    settings, made = REAL[case]
    assert findings(settings, made()) == ()


def test_survey_finds_nothing_when_masks_and_kinds_go_with_token_ids() -> None:
    names = ("ids", "mask", "kinds")
    survey = Survey({name: InputSettings((1, 32), "int64", "any") for name in names})
    rows = zip(*(tokens(name) for name in names), strict=True)
    list(survey.passing(Sample("", dict(zip(names, row, strict=True))) for row in rows))
    assert survey.findings() == ()


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize("split", ["calibration", "held_out"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_survey_finds_nothing_when_samples_are_photos(split: str, size: int, layout: str) -> None:
    shape = (1, 3, size, size) if layout == "NCHW" else (1, size, size, 3)
    settings = InputSettings(shape, layout=layout, value_range=(0.0, 1.0))  # type: ignore[arg-type]
    crops = open_photos(split, {"x": settings}, {})  # type: ignore[arg-type]
    arrays = [crops[index].inputs["x"] for index in range(COUNT)]
    assert findings(settings, arrays) == ()
    if layout == "NCHW":
        assert findings(settings, [grey(array) for array in arrays]) == ()
        assert findings(settings, [0.2 * array for array in arrays]) == ()  # taken in the evening


def held_out(accuracy: float) -> dict[str, np.ndarray]:
    labels = np.arange(200) % 10
    answered = np.where(np.arange(200) < 200 * accuracy, labels, (labels + 1) % 10)
    return {"float/logits": np.eye(10)[answered], "labels": labels}


def test_refuse_collapse_names_accuracy_chance_and_warnings_when_both_are_bad() -> None:
    with pytest.raises(DataError, match=r"right on 10\.0% of 200 held-out samples, where chance gives 10\.0%.*: why"):
        refuse_collapse(held_out(0.1), ["logits"], ["why"])


@pytest.mark.parametrize(("accuracy", "warnings"), [(0.1, []), (0.3, ["why"]), (1.0, ["why"])])
def test_refuse_collapse_lets_pass_when_one_of_them_is_good(accuracy: float, warnings: list[str]) -> None:
    refuse_collapse(held_out(accuracy), ["logits"], warnings)
    few = {name: array[:29] for name, array in held_out(0.0).items()}
    refuse_collapse(few, ["logits"], ["why"])
    refuse_collapse({"float/logits": np.eye(4)}, ["logits"], ["why"])  # nor is anything known without labels
