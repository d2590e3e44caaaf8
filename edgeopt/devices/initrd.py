"""An initial RAM disk: the files that a kernel has before it has mounted anything, as a cpio archive.

Source: "initramfs buffer format" in the kernel's documentation, with the ``newc`` header of cpio(5).
"""

from __future__ import annotations

from collections.abc import Mapping

_FOLDER, _FILE = 0o40755, 0o100755
_END = "TRAILER!!!"


def initrd(folders: tuple[str, ...], files: Mapping[str, bytes]) -> bytes:
    """Return an archive of empty folders and of files; all belong to root and may be executed."""
    entries = [(name, _FOLDER, b"") for name in folders] + [(name, _FILE, files[name]) for name in files]
    return b"".join(_entry(number, *entry) for number, entry in enumerate([*entries, (_END, 0, b"")], start=1))


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    #         inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return _to_word(head) + _to_word(content)


def _to_word(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)
