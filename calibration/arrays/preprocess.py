"""Arrays: samples from a user's own ``.npy`` and ``.npz`` files, without a line of code.

    [calibration]
    dataset = "arrays"
    [calibration.options]
    calibration = "samples/calibration"   # a folder, or one .npz
    held_out = "samples/held_out.npz"
    train = "samples/train.npz"           # only where something is trained

Each is one of

1. a folder of ``.npy`` files, one sample each, for a network with one input;
2. a folder of ``.npz`` files, one sample each: an array for every input by its name, and ``label`` if it has one;
3. one ``.npz`` file: for every input an array ``(N, ...)`` by its name, and ``labels`` ``(N, ...)`` if there are any.

A label is a class number from 0, a mask of integers without the batch axis, below 0 where nothing is known, or what the
network should answer, floating-point.

A sample's array has the recipe's shape, with or without the batch of 1 in front, and is float32: nothing is cast, so
that what calibrates is what the device computes. Files are taken in order of their names. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, RecipeError, did_you_mean
from edgeopt.samples import Dataset, Sample, Split
from edgeopt.settings import InputSettings

_SPLITS = ("calibration", "held_out", "train")
_LABEL, _LABELS = "label", "labels"

Stored = Mapping[str, NDArray[np.generic]]
Inputs = Mapping[str, InputSettings]


def open_dataset(split: Split, inputs: Inputs, options: Mapping[str, object]) -> Dataset:
    """Return a split from the files that the option of its name leads to.

    Args:
        split: ``train``, ``calibration`` or ``held_out``.
        inputs: the network's inputs.
        options: ``calibration``, ``held_out`` and ``train``, each an absolute path.

    Raises:
        RecipeError: an unknown option, or none for this split.
        DataError: the path holds no such files, or one does not fit.
    """
    for key in options:
        if key not in _SPLITS:
            raise RecipeError(f"arrays: unknown option {key!r}", hint=did_you_mean(key, _SPLITS))
    if split not in options:
        raise RecipeError(
            f"arrays: there is no option {split!r}",
            hint=f"write {split} = 'FOLDER or FILE.npz' under [calibration.options]",
        )
    path = Path(str(options[split]))
    if path.is_dir():
        return _open_folder(path, inputs)
    if path.suffix == ".npz" and path.is_file():
        return _open_stack(path, inputs)
    raise DataError(f"arrays: {path.name}, expected a folder of .npy or .npz files, or one .npz file")


@dataclass(frozen=True)
class Files:
    """A folder with one file a sample, each read when it is asked for."""

    paths: tuple[Path, ...]
    inputs: Inputs

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample in one file."""
        path = self.paths[index]
        stored = _read(path)
        if path.suffix == ".npy":
            stored = {next(iter(self.inputs)): stored[""]}
        _check_names(path.name, stored, self.inputs, _LABEL)
        label = _label(path.name, stored[_LABEL]) if _LABEL in stored and _LABEL not in self.inputs else None
        return Sample(path.name, {name: _sample(path.name, name, stored[name], self.inputs[name])
                                  for name in self.inputs}, label)  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """One file with all samples: ``arrays`` ``(N, ...)`` by input, and ``labels`` ``(N, ...)`` or none."""

    name: str
    arrays: Stored
    labels: NDArray[np.generic] | None
    inputs: Inputs

    def __len__(self) -> int:
        """Return N."""
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> Sample:
        """Return one row."""
        where = f"{self.name}[{index}]"
        arrays = {name: _sample(where, name, array[index], self.inputs[name]) for name, array in self.arrays.items()}
        return Sample(where, arrays, None if self.labels is None else _label(where, self.labels[index]))


def _open_folder(path: Path, inputs: Inputs) -> Files:
    found = sorted(item for item in path.iterdir() if item.suffix in (".npy", ".npz") and item.is_file())
    if not found:
        raise DataError(f"arrays: the folder {path.name} holds no .npy or .npz file")
    kinds = {item.suffix for item in found}
    if len(kinds) > 1:
        raise DataError(f"arrays: the folder {path.name} holds .npy and .npz files, expected one kind")
    if kinds == {".npy"} and len(inputs) > 1:
        raise DataError(
            f"arrays: {found[0].name} is one array, the network has the inputs {', '.join(inputs)}",
            hint="np.savez(path, NAME=array, ...) keeps one for each input",
        )
    return Files(tuple(found), inputs)


def _open_stack(path: Path, inputs: Inputs) -> Stack:
    stored = _read(path)
    _check_names(path.name, stored, inputs, _LABELS)
    arrays = {name: stored[name] for name in inputs}
    lengths = {name: len(array) if array.ndim else 0 for name, array in stored.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in sorted(lengths.items()))
        raise DataError(f"arrays: {path.name} has arrays of different lengths: {counts}")
    return Stack(path.name, arrays, None if _LABELS in inputs else stored.get(_LABELS), inputs)


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a file by name, that of a ``.npy`` file under the empty name."""
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            return {name: loaded[name] for name in loaded.files} if path.suffix == ".npz" else {"": np.asarray(loaded)}
    except (ValueError, EOFError, AttributeError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"arrays: {path.name} cannot be read as {path.suffix} without running code: {error}",
            hint="write it with np.save or np.savez, from arrays of numbers",
        ) from error


def _check_names(where: str, stored: Stored, inputs: Inputs, label: str) -> None:
    for name in inputs:
        if name not in stored:
            raise DataError(f"arrays: {where} has no array {name!r}", hint=did_you_mean(name, list(stored)))
    for name in stored:
        if name not in (*inputs, label):
            raise DataError(f"arrays: {where} has an array {name!r}", hint=did_you_mean(name, [*inputs, label]))


def _sample(where: str, name: str, array: NDArray[np.generic], expected: InputSettings) -> NDArray[np.float32]:
    if array.dtype != np.float32:
        raise DataError(
            f"arrays: {where}: {name!r} is {array.dtype}, expected float32",
            hint="preprocess it as the network was trained, then .astype(np.float32); nothing is cast here",
        )
    if array.shape not in (expected.shape, expected.shape[1:]):
        raise DataError(
            f"arrays: {where}: {name!r} has shape {list(array.shape)}, expected {list(expected.shape[1:])}",
            hint="channels first or last? the recipe's layout is that of the network",
        )
    return np.ascontiguousarray(array, np.float32).reshape(expected.shape)


def _label(where: str, value: NDArray[np.generic]) -> int | NDArray[np.generic]:
    label = np.asarray(value)
    if np.issubdtype(label.dtype, np.floating) or (np.issubdtype(label.dtype, np.integer) and label.ndim > 0):
        return label
    if not np.issubdtype(label.dtype, np.integer) or int(label) < 0:
        raise DataError(
            f"arrays: {where}: the label is {value!r}, expected a class number from 0, a mask of integers, or a "
            "floating-point target"
        )
    return int(label)
