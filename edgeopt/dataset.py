"""Opens the folders of ``calibration/`` (or a user's own) and checks every sample that comes out of them.

A folder has ``preprocess.py`` with ``open_dataset`` (see :mod:`edgeopt.samples`), and ``calibration.toml``: what the
samples are, from where, under which licence, how they were preprocessed, in which ``files`` of packages they lie, which
of the recipe's options are paths, and what an option is that the recipe leaves out.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TypeGuard

import numpy as np

from edgeopt.artifacts import digest_of, sha256_file
from edgeopt.errors import DataError, MissingDependencyError, did_you_mean
from edgeopt.provenance import fingerprint, folder_files, locate
from edgeopt.samples import Dataset, Sample, Split
from edgeopt.settings import CalibrationSettings, InputSettings
from edgeopt.typed_toml import Decoder, read_toml

_PACKAGE_FILE = re.compile(r"\w+:")


@dataclass(frozen=True)
class _Facts:
    """What ``calibration.toml`` may say."""

    title: str = ""
    source: str = ""
    licence: str = ""
    package: str = ""
    files: tuple[str, ...] = ()
    path_options: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    install: str = ""
    random: bool = False
    preprocessing: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetFolder:
    """A folder of samples: its facts, and the options with paths made absolute."""

    path: Path
    facts: Mapping[str, object]
    options: Mapping[str, object]

    def open(self, split: Split, inputs: Mapping[str, InputSettings]) -> Dataset:
        """Open one split.

        Raises:
            DataError: if ``preprocess.py`` has no ``open_dataset`` or the split is empty.
        """
        module = _import_preprocess(self.path)
        open_dataset = getattr(module, "open_dataset", None)
        if open_dataset is None:
            raise DataError(f"{self.path.name}/preprocess.py has no function 'open_dataset'")
        dataset: Dataset = open_dataset(split, inputs, self.options)
        if len(dataset) == 0:
            raise DataError(f"data set {self.path.name!r} has no samples in its {split} split")
        return dataset

    @property
    def is_random(self) -> bool:
        """Return whether the samples are made up, so that ranges from them mean nothing."""
        return bool(self.facts.get("random", False))

    def declared(self, inputs: Mapping[str, InputSettings]) -> dict[str, InputSettings]:
        """Return the network's inputs with the range that this data set's samples have, where the recipe says none.

        Raises:
            DataError: ``preprocessing.value_range`` is no range.
        """
        preprocessing = self.facts.get("preprocessing", {})
        given = preprocessing.get("value_range") if isinstance(preprocessing, Mapping) else None
        if given is None:
            return dict(inputs)
        if not (_is_pair(given) and given[0] < given[1]):
            raise DataError(
                f"{self.path.name}/calibration.toml: preprocessing.value_range is [smallest, largest], got {given!r}"
            )
        value_range = (float(given[0]), float(given[1]))
        return {
            name: settings if settings.value_range is not None else replace(settings, value_range=value_range)
            for name, settings in inputs.items()
        }

    def files(self) -> tuple[Path, ...]:
        """Return every file that the samples are made from, as far as the folder and the options say."""
        named = [Path(str(self.options[key])) for key in _names(self.facts, "path_options") if key in self.options]
        named += [locate(reference, self.path) for reference in _names(self.facts, "files")]
        more = [file for path in named for file in (folder_files(path) if path.is_dir() else (path,))]
        return (*folder_files(self.path), *more)

    def key(self) -> tuple[str, ...]:
        """Return what a cache key needs: options, the files' hashes, the versions of the packages that bring the data.

        An option that is a path counts by what lies there, so that a folder may be moved.
        """
        packages = [str(self.facts.get("package", ""))] if self.facts.get("package") else []
        names = [name.strip() for text in packages for name in text.split(",") if name.strip()]
        return (
            *fingerprint(folder_files(self.path)),
            *(text for key in sorted(self.options) for text in self._option_key(key)),
            *(f"{reference}:{sha256_file(locate(reference, self.path))}" for reference in _names(self.facts, "files")),
            *(f"{name}=={_version(name)}" for name in names),
        )

    def _option_key(self, name: str) -> tuple[str, ...]:
        value = self.options[name]
        if name not in _names(self.facts, "path_options"):
            return (f"{name}={value!r}",)
        path = Path(str(value))
        return (name, *fingerprint(folder_files(path) if path.is_dir() else (path,)))


def find_dataset(settings: CalibrationSettings, folder: Path) -> DatasetFolder:
    """Find the folder that a recipe names: one of ``calibration/``, or a path relative to the recipe.

    Raises:
        DataError: if there is none, its ``calibration.toml`` has unknown keys, or an option is a path to nothing.
        MissingDependencyError: if the recipe leaves that path out, and the data is not where it is installed.
    """
    path = (folder / settings.dataset).resolve()
    if not (path / "calibration.toml").is_file():
        spec = importlib.util.find_spec("edgeopt.calibration")
        roots = [Path(root) for root in (spec.submodule_search_locations if spec else None) or []]
        known = {item.parent.name: item.parent for root in roots for item in sorted(root.glob("*/calibration.toml"))}
        if settings.dataset not in known:
            raise DataError(
                f"there is no data set {settings.dataset!r}, neither in calibration/ nor as the folder {path}",
                hint=did_you_mean(settings.dataset, list(known)),
            )
        path = known[settings.dataset]
    called = f"{path.name}/calibration.toml"
    facts = read_toml(path / "calibration.toml", source=called, error=DataError)
    given = Decoder(called, path, DataError).settings(_Facts, facts)
    return DatasetFolder(path, MappingProxyType(facts), _resolved(settings.options, given, folder))


def checked_samples(
    dataset: Dataset, count: int, inputs: Mapping[str, InputSettings], split: Split
) -> Iterator[Sample]:
    """Yield the first ``count`` samples, each with the recipe's inputs, shapes and finite values.

    Raises:
        DataError: naming the sample, if one is not as it must be or there are fewer than ``count``.
    """
    if len(dataset) < count:
        raise DataError(
            f"the {split} split has {len(dataset)} samples, the recipe asks for {count}",
            hint="lower calibration.num_samples or num_held_out, or add samples",
        )
    for index in range(count):
        sample = dataset[index]
        _check_sample(sample, inputs)
        yield sample


def sample_digest(sample: Sample) -> str:
    """Return a SHA-256 of what a sample holds, whatever it is called."""
    return digest_of(
        f"{name}:{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
        for name, array in sorted(sample.inputs.items())
    )


def _check_sample(sample: Sample, inputs: Mapping[str, InputSettings]) -> None:
    if set(sample.inputs) != set(inputs):
        raise DataError(f"sample {sample.name!r} has the inputs {sorted(sample.inputs)}, the recipe {sorted(inputs)}")
    for name, expected in inputs.items():
        array = sample.inputs[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise DataError(
                f"sample {sample.name!r}: input {name!r} is {array.dtype}{list(array.shape)}, "
                f"expected {expected.dtype}{list(expected.shape)}",
                hint="channels first or last? the recipe's layout is that of the network",
            )
        if not np.isfinite(array).all():
            raise DataError(f"sample {sample.name!r}: input {name!r} has NaN or infinite values")


def _resolved(options: Mapping[str, object], facts: _Facts, folder: Path) -> Mapping[str, object]:
    """Add defaults, and make the options that are paths absolute; they start at the recipe or an installed package."""
    resolved = {**facts.defaults, **options}
    for key in facts.path_options:
        if key in resolved:
            given = str(resolved[key])
            path = locate(given, folder) if _PACKAGE_FILE.match(given) else (folder / given).resolve()
            resolved[key] = str(path)
            if not path.exists():
                error = DataError if key in options else MissingDependencyError
                raise error(f"calibration.options.{key}: there is no {path}", hint=facts.install or None)
    return MappingProxyType(resolved)


def _is_pair(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, Sequence) and len(value) == 2 and all(type(item) in (int, float) for item in value)


def _names(facts: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = facts.get(key, ())
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


def _import_preprocess(path: Path) -> ModuleType:
    name = f"_edgeopt_dataset_{digest_of([str(path)])[:16]}"
    spec = importlib.util.spec_from_file_location(name, path / "preprocess.py")
    if spec is None or spec.loader is None or not (path / "preprocess.py").is_file():
        raise DataError(f"data set {path.name!r} has no preprocess.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
