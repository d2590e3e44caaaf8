"""What an ELF file needs of the libraries beside it: the glibc and libstdc++ floor of a program or a shared library.

Source: System V ABI, Program Header and Dynamic Section; Linux Standard Base 5.0, Symbol Versioning.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

_LOAD, _DYNAMIC = 1, 2
_STRTAB, _VERNEED, _VERNEEDNUM = 5, 0x6FFFFFFE, 0x6FFFFFFF


def floor_of(path: Path, prefix: str) -> tuple[int, ...]:
    """Return the highest version of symbols that a file needs: ``(2, 34)`` for ``GLIBC`` if that is ``GLIBC_2.34``.

    Args:
        path: a 64-bit little-endian ELF file, linked dynamically.
        prefix: ``GLIBC`` or ``GLIBCXX``.

    Raises:
        ValueError: it is no such file.
    """
    try:
        names = set(_needed_versions(path.read_bytes()))
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError(f"{path} is no 64-bit little-endian ELF file that is linked dynamically") from error
    found = (re.fullmatch(rf"{prefix}_(\d+(?:\.\d+)*)", name) for name in names)
    return max((tuple(map(int, match[1].split("."))) for match in found if match), default=())


def _needed_versions(data: bytes) -> Iterator[str]:
    if data[:6] != b"\x7fELF\x02\x01":
        raise KeyError
    (headers_at,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, headers_at + index * size) for index in range(count)]

    def place(address: int) -> int:
        for kind, _, offset, start, _, length in headers:
            if kind == _LOAD and start <= address < start + length:
                return int(offset + address - start)
        raise KeyError

    start, length = {kind: (offset, length) for kind, _, offset, _, _, length in headers}[_DYNAMIC]
    facts = dict(struct.iter_unpack("<QQ", data[start : start + length // 16 * 16]))
    strings, need = place(facts[_STRTAB]), place(facts[_VERNEED])
    for _ in range(facts[_VERNEEDNUM]):
        _, num_versions, _, first, following = struct.unpack_from("<HHIII", data, need)
        version = need + first
        for _ in range(num_versions):
            _, _, _, name, step = struct.unpack_from("<IHHII", data, version)
            yield data[strings + name : data.index(b"\0", strings + name)].decode("ascii", "replace")
            version += step
        need += following
