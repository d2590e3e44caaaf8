"""The sentence set: topics apart, tokens as the network's inputs want them."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgeopt.calibration.sentences.preprocess import open_dataset
from edgeopt.dataset import find_dataset
from edgeopt.errors import DataError, EdgeoptError
from edgeopt.samples import Dataset
from edgeopt.settings import CalibrationSettings, InputSettings

INPUTS = {
    "input_ids": InputSettings((1, 8), "int64", "any"),
    "attention_mask": InputSettings((1, 8), "int32", "any"),
}


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A tokenizer that knows three words, and pads with 9."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "[S]": 1, "The": 2, "a": 3, "[PAD]": 9}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[S] $A", special_tokens=[("[S]", 1)])
    made.enable_padding(pad_id=9, pad_token="[PAD]")
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def texts_of(dataset: Dataset, field: str = "_sentences") -> list[str]:
    return list(getattr(dataset, field))


def test_open_dataset_never_shares_a_sentence_when_splits_differ(tokenizer: str) -> None:
    splits = [texts_of(open_dataset(split, INPUTS, {"tokenizer": tokenizer})) for split in ("calibration", "held_out")]
    assert min(map(len, splits)) > 300
    assert not set(splits[0]) & set(splits[1])
    assert all(len(set(split)) == len(split) for split in splits)
    assert all(6 <= len(text.split()) <= 40 and text[-1] in ".?!" for split in splits for text in split)


def test_sample_is_cut_off_and_padded_when_the_input_has_a_length(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("The a\n\nThe a a a a a a a a\n")
    options = {"tokenizer": tokenizer, "texts": str(tmp_path / "texts.txt")}
    short, long = (open_dataset(split, INPUTS, options)[0].inputs for split in ("calibration", "held_out"))
    np.testing.assert_array_equal(short["input_ids"], [[1, 2, 3, 9, 9, 9, 9, 9]])
    np.testing.assert_array_equal(short["attention_mask"], [[1, 1, 1, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(long["input_ids"], [[1, 2, 3, 3, 3, 3, 3, 3]])
    assert (short["input_ids"].dtype, short["attention_mask"].dtype) == (np.int64, np.int32)


def test_open_dataset_says_what_is_wrong_when_it_cannot_fill_the_inputs(tokenizer: str) -> None:
    options = {"tokenizer": tokenizer}
    with pytest.raises(DataError, match=r"options\.tokenizer is missing"):
        open_dataset("held_out", INPUTS, {})
    with pytest.raises(DataError, match="no labels to train with"):
        open_dataset("train", INPUTS, options)
    with pytest.raises(DataError, match="does not fill the input 'ids'"):
        open_dataset("held_out", {"ids": INPUTS["input_ids"]}, options)
    with pytest.raises(DataError, match=r"one length, got \[8, 9\]"):
        open_dataset("held_out", {**INPUTS, "token_type_ids": InputSettings((1, 9), "int64", "any")}, options)


def test_find_dataset_takes_a_file_of_a_package_when_an_option_names_one(tmp_path: Path) -> None:
    def found(tokenizer: str) -> str:
        settings = CalibrationSettings("sentences", options={"tokenizer": tokenizer})
        return str(find_dataset(settings, tmp_path).options["tokenizer"])

    assert found("pydoc_data:topics.py").endswith("pydoc_data/topics.py")
    with pytest.raises(EdgeoptError, match=r"no_such\.json"):
        found("pydoc_data:no_such.json")
