"""Gestures: cut the recordings that the seglearn package carries into windows, and hold out whole people.

Two windows of one recording overlap, and a person makes all repetitions alike. A split of windows would ask whether a
network remembers a person; only people whom it never met tell how it serves the next one. The option ``unseen_people``
names them (1 to 10, by default 9 and 10): their windows are held out. The windows of the others all train, and every
eleventh calibrates. Every split goes recording by recording in turn, so that every prefix is balanced.

The file is a pickle inside an ``.npy`` file. It is read by an unpickler that makes arrays, lists and dicts and nothing
else, so that no file, whatever is in it, can run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import DataError, RecipeError, did_you_mean
from edgeopt.provenance import locate
from edgeopt.samples import Sample, Split
from edgeopt.settings import InputSettings

NUM_PEOPLE, NUM_CHANNELS = 10, 6
_FILE = "seglearn:data/watch_dataset.npy"
_CALIBRATION_EVERY = 11  # no factor of the 14 recordings a person, so that all recordings have their turn


@dataclass(frozen=True)
class Recording:
    """One person's repetitions of an exercise with one arm: ``signal`` float32 ``(6, steps)`` at 50 Hz."""

    person: int
    exercise: int
    name: str
    signal: NDArray[np.float32]


@dataclass(frozen=True)
class Windows:
    """A split: pieces of recordings, each by its recording and the step that it starts at."""

    input_name: str
    num_steps: int
    places: tuple[tuple[Recording, int], ...]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        """Return one window, float32 ``(1, 6, num_steps)``, labelled with its exercise."""
        recording, start = self.places[index]
        window = recording.signal[np.newaxis, :, start : start + self.num_steps]
        return Sample(f"{recording.name}/{start}", {self.input_name: window.copy()}, recording.exercise)


def open_dataset(split: Split, inputs: Mapping[str, InputSettings], options: Mapping[str, object]) -> Windows:
    """Return a split for a network with one input, ``(1, 6, steps)``.

    Args:
        split: ``train``, ``calibration`` (every eleventh of these windows) or ``held_out`` (unseen people).
        inputs: the network's one input.
        options: ``unseen_people``, their numbers.

    Raises:
        DataError: the network has other inputs, or the file is damaged.
        RecipeError: an option is unknown or has a wrong value.
        MissingDependencyError: seglearn is not installed.
    """
    for key in options:
        if key != "unseen_people":
            raise RecipeError(f"gestures: unknown option {key!r}", hint=did_you_mean(key, ["unseen_people"]))
    unseen = _unseen_people(options.get("unseen_people", []))
    name, num_steps = _only_series(inputs)
    recordings = read_recordings(locate(_FILE, Path()))
    chosen = [recording for recording in recordings if (recording.person in unseen) == (split == "held_out")]
    places = _by_turns(chosen, num_steps)
    if split == "calibration":
        places = places[::_CALIBRATION_EVERY]
    return Windows(name, num_steps, places)


def read_recordings(path: Path) -> list[Recording]:
    """Return the 140 recordings, person by person.

    Raises:
        DataError: the file is damaged, or holds anything but arrays.
    """
    try:
        with path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
            table = _ArraysOnly(stream).load().item()
        return sorted(
            (_recording(table, index) for index in range(len(table["X"]))),
            key=lambda recording: (recording.person, recording.name),
        )
    except (pickle.UnpicklingError, ValueError, EOFError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise DataError(
            f"gestures: {path} is not the file that seglearn carries: {error}",
            hint="pip install --force-reinstall --no-deps seglearn",
        ) from error


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays from a pickle that NumPy 1 wrote, and refuses to look up anything else."""

    _KNOWN: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, dtype: np.ndarray.__new__(kind, shape, dtype),
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the file stands for."""
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which makes no array")
        return self._KNOWN[module, name]


def _recording(table: Mapping[str, Any], index: int) -> Recording:
    person, exercise = int(table["subject"][index]), int(table["y"][index])
    arm = "right" if table["side"][index] else "left"
    signal = np.ascontiguousarray(table["X"][index].T, np.float32)
    if signal.ndim != 2 or len(signal) != NUM_CHANNELS:
        raise ValueError(f"recording {index} has shape {signal.shape}")
    return Recording(person, exercise, f"gestures/{person}/{table['y_labels'][exercise]}/{arm}", signal)


def _by_turns(recordings: list[Recording], num_steps: int) -> tuple[tuple[Recording, int], ...]:
    """Return the first window of each recording, then the second of each, and so on."""
    hop = max(1, num_steps // 2)
    places = [
        (start, number)
        for number, recording in enumerate(recordings)
        for start in range(0, recording.signal.shape[1] - num_steps + 1, hop)
    ]
    return tuple((recordings[number], start) for start, number in sorted(places))


def _unseen_people(value: object) -> frozenset[int]:
    people = value if isinstance(value, list | tuple) else [value]
    numbers = {person for person in people if type(person) is int and 1 <= person <= NUM_PEOPLE}
    if len(numbers) != len(people) or not 0 < len(numbers) < NUM_PEOPLE:
        raise RecipeError(f"gestures: 'unseen_people' is some of the numbers 1 to {NUM_PEOPLE}, got {value!r}")
    return frozenset(numbers)


def _only_series(inputs: Mapping[str, InputSettings]) -> tuple[str, int]:
    """Return name and number of steps of the network's one input, refusing what a window cannot be fed to."""
    shapes = [settings.shape for settings in inputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][:2] != (1, NUM_CHANNELS):
        found = ", ".join(f"{name} {list(settings.shape)}" for name, settings in inputs.items())
        raise DataError(
            f"gestures: the network's inputs are {found or 'none'}, expected one of shape [1, {NUM_CHANNELS}, steps]",
            hint="write [model.inputs.motion] with shape = [1, 6, 128] and layout = 'any'",
        )
    ((name, settings),) = inputs.items()
    return name, settings.shape[2]
