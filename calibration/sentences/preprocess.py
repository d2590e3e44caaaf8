"""Sentences as samples: token ids and what goes with them, cut off and padded to the length of the network's inputs.

Sample ``i`` comes from topic ``i % T`` of the split's ``T`` topics as long as that has sentences left, so any first N
samples cover all topics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeopt.errors import DataError, MissingDependencyError, did_you_mean
from edgeopt.samples import Sample, Split
from edgeopt.settings import InputSettings

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# The network's input: what the tokenizer calls it.
_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_PLACE: Mapping[Split, int] = {"calibration": 0, "held_out": 1}  # of two topics or lines, whose turn it is
_FEWEST_WORDS, _MOST_WORDS = 6, 40
_NAME = 32  # letters of a sentence by which a sample is called


class Sentences:
    """One split; a sentence is tokenized when it is asked for."""

    def __init__(self, sentences: Sequence[str], tokenizer: Tokenizer, inputs: Mapping[str, InputSettings]) -> None:
        self._sentences = sentences
        self._tokenizer = tokenizer
        self._inputs = inputs

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self._sentences)

    def __getitem__(self, index: int) -> Sample:
        """Return the tokens of one sentence, ``(1, length)``."""
        text = self._sentences[index]
        encoding: Encoding = self._tokenizer.encode(text)
        arrays = {
            name: np.array([getattr(encoding, _FIELDS[name])], given.dtype) for name, given in self._inputs.items()
        }
        return Sample(f"{index}: {text[:_NAME]}", arrays)


def open_dataset(split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> Sentences:
    """Return one split of the sentences; options are ``tokenizer`` and ``texts``.

    Raises:
        DataError: if there is no tokenizer, an input is none that it fills, or the inputs differ in length.
        MissingDependencyError: if the package tokenizers is not installed.
    """
    if split not in _PLACE:
        raise DataError("sentences have no labels to train with", hint="take [train] out of the recipe")
    for name in inputs:
        if name not in _FIELDS:
            raise DataError(f"a tokenizer does not fill the input {name!r}", hint=did_you_mean(name, list(_FIELDS)))
    lengths = {given.shape[-1] for given in inputs.values()}
    if len(lengths) != 1:
        raise DataError(f"the inputs of sentences have one length, got {sorted(lengths)}")
    topics = _lines(Path(str(options["texts"]))) if "texts" in options else _topics()
    chosen = list(_in_turn(topics[_PLACE[split] :: 2]))
    if split == "held_out":
        seen = set(_in_turn(topics[0::2]))
        chosen = [text for text in chosen if text not in seen]
    return Sentences(chosen, _tokenizer(options, lengths.pop()), inputs)


def _topics() -> list[list[str]]:
    """Return the sentences of each topic of Python's language reference."""
    from pydoc_data.topics import topics

    return [list(_sentences(topics[name])) for name in sorted(topics)]


def _sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("   ") or "::=" in paragraph:
            continue  # code and grammar
        for sentence in re.split(r"(?<=[.?!]) (?=[A-Z])", " ".join(paragraph.split())):
            is_whole = sentence[:1].isupper() and sentence[-1:] in (".", "?", "!")
            if is_whole and _FEWEST_WORDS <= len(sentence.split()) <= _MOST_WORDS:
                yield sentence


def _lines(path: Path) -> list[list[str]]:
    return [[line.strip()] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _in_turn(topics: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a sentence of each topic, then the next of each, no sentence twice."""
    yield from dict.fromkeys(text for turn in zip_longest(*topics) for text in turn if text is not None)


def _tokenizer(options: Mapping[str, object], length: int) -> Tokenizer:
    if "tokenizer" not in options:
        raise DataError("calibration.options.tokenizer is missing", hint="name the network's tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "the data set 'sentences' needs the package tokenizers", hint="pip install tokenizers"
        ) from error
    tokenizer = Tokenizer.from_file(str(options["tokenizer"]))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(**{**(tokenizer.padding or {}), "length": length})
    return tokenizer
