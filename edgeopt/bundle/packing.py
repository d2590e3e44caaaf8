"""A bundle as one compressed file: the same bundle gives the same bytes, and nothing is unpacked outside its folder.

In an archive the model may be a coded one (:mod:`edgeopt.bundle.coding`); unpacking decodes it.
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeopt import parity
from edgeopt.atomic import replace_folder
from edgeopt.bundle import coding
from edgeopt.bundle.signing import SIGNATURE
from edgeopt.errors import BundleError, StorageError, UsageError

SUFFIX = ".edgeopt.tar.xz"
_PRESET = 9 | lzma.PRESET_EXTREME
# No bundle is near this; an archive that unpacks to more was made to fill a disk.
_MOST_BYTES = 4_000_000_000
_MOST_FILES = 10_000


@dataclass(frozen=True)
class PackedFile:
    """One file of a bundle: its bytes, and what it has when it is compressed alone."""

    name: str
    size_bytes: int
    compressed_bytes: int


@dataclass(frozen=True)
class Packed:
    """An archive that was written; ``files`` accounts for what is in it, ``model`` for the model if it was coded."""

    path: Path
    size_bytes: int
    files: tuple[PackedFile, ...]
    model: coding.CodedModel | None = None


def pack(bundle: Path, destination: Path | None = None, *, coded: bool = False) -> Packed:
    """Write a bundle's listed files, and its signature if it has one, as ``.tar.xz``.

    Owners, modes and times are not those of this machine: times are ``SOURCE_DATE_EPOCH``, or 1970.

    Args:
        bundle: the folder; it is checked first.
        destination: by default ``NAME-TARGET.edgeopt.tar.xz`` beside the folder.
        coded: whether the model's weights are coded, each tensor in its smallest form.

    Raises:
        BundleError: a file is missing or was changed.
        UsageError: ``SOURCE_DATE_EPOCH`` is no number.
        StorageError: the disk is full or read-only; an older archive is untouched.
    """
    if not (bundle / "bundle.json").is_file():
        raise BundleError(f"{bundle} is not a bundle: it has no bundle.json", hint="edgeopt build writes bundles")
    try:
        manifest = parity.read_bundle(str(bundle))
    except parity.BundleDamaged as error:
        raise BundleError(f"{bundle}: {error}") from error
    place = destination or bundle.absolute().with_name(f"{manifest['name']}-{manifest['target']}{SUFFIX}")
    signature = [path.name for path in (bundle / SIGNATURE,) if path.is_file()]
    # bundle.json first: who unpacks a stream knows what comes.
    names = ["bundle.json", *sorted([*manifest["files"], *signature])]
    contents = {name: (bundle / name).read_bytes() for name in names}
    model = None
    if coded:
        file = manifest["model"]["file"]
        model = coding.coded_size(bundle / file)
        del contents[file]
        contents[file + coding.SUFFIX] = model.content
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with (
            _writing(place),
            lzma.open(temporary, "wb", preset=_PRESET) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name, content in contents.items():
                _add(archive, name, content, _epoch())
        with _writing(place):
            temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    return Packed(place, place.stat().st_size, tuple(_accounted(contents)), model)


def unpack(archive: Path, destination: Path) -> Path:
    """Unpack an archive into a new folder and check every file; return the folder.

    Raises:
        BundleError: the archive is damaged, names a file outside its folder or one that is no regular file, unpacks to
            absurd sizes, or does not hold the bundle that it says.
        UsageError: the destination is there already.
        StorageError: the disk is full or read-only; nothing is left of it.
    """
    if destination.exists():
        raise UsageError(f"{destination} is there already", hint="choose another folder, or remove it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as work:
        folder = Path(work) / "bundle"
        folder.mkdir()
        try:
            with tarfile.open(archive, "r:xz") as stream, _writing(destination):
                _extract(stream, folder)
                _decode_model(folder)
            manifest = parity.read_bundle(str(folder))
        except (tarfile.TarError, lzma.LZMAError, EOFError, parity.BundleDamaged) as error:
            raise BundleError(f"{archive}: {error}", hint="take it again from where it was made") from error
        listed = {"bundle.json", SIGNATURE, *manifest["files"]}
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if unlisted := found - listed:
            raise BundleError(f"{archive} holds {min(unlisted)!r}, which bundle.json does not list")
        replace_folder(folder, destination)
    return destination


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """Give a temporary folder with an archive's bundle.

    Raises:
        BundleError, StorageError: as :func:`unpack`.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as work:
        yield unpack(archive, Path(work) / "bundle")


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space, or choose another place"
        raise StorageError(f"cannot write {place}: {error.strerror}", hint=hint) from error


def _add(archive: tarfile.TarFile, name: str, content: bytes, epoch: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), 0o644, epoch
    archive.addfile(entry, io.BytesIO(content))


def _extract(stream: tarfile.TarFile, folder: Path) -> None:
    """Write regular files with plain relative names, and nothing else; sizes are counted before they are written."""
    total = 0
    for count, entry in enumerate(stream, start=1):
        total += entry.size
        parts = PurePosixPath(entry.name).parts
        if not entry.isreg() or entry.name.startswith("/") or ".." in parts or "\\" in entry.name or not parts:
            raise BundleError(f"{stream.name!s} names {entry.name!r}, which is no file inside a bundle")
        if total > _MOST_BYTES or count > _MOST_FILES:
            raise BundleError(f"{stream.name!s} unpacks to more than {_MOST_BYTES:,} bytes or {_MOST_FILES:,} files")
        content = stream.extractfile(entry)
        place = folder.joinpath(*parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None or place.exists():
            raise BundleError(f"{stream.name!s} names {entry.name!r} twice")
        with content, place.open("wb") as target:
            shutil.copyfileobj(content, target)


def _decode_model(folder: Path) -> None:
    """Put the model file in the place of a coded one."""
    for path in folder.glob(f"*{coding.SUFFIX}"):
        model = path.with_suffix("")
        if model.exists():
            raise BundleError(f"the archive holds {model.name} twice, once coded")
        model.write_bytes(coding.decode_model(path.read_bytes()))
        path.unlink()


def _accounted(contents: Mapping[str, bytes]) -> Iterator[PackedFile]:
    for name, content in contents.items():
        # A dictionary of the preset's size takes half a gigabyte and longer to make than to use.
        filters = [{"id": lzma.FILTER_LZMA2, "preset": _PRESET, "dict_size": max(4096, len(content))}]
        yield PackedFile(name, len(content), len(lzma.compress(content, format=lzma.FORMAT_RAW, filters=filters)))


def _epoch() -> int:
    """Return the time that every file gets, by the reproducible-builds.org convention."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isdigit():
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}, expected seconds since 1970")
    return int(text)
