"""Numbers and bytes one behind the other, read without ever reaching past the end."""

from __future__ import annotations

from edgeopt.errors import BundleError

_MOST_VARINT_BYTES = 5


def varint(number: int) -> bytes:
    """Return a number from 0 to ``2**35 - 1`` as LEB128: seven bits a byte, the lowest first, the last without 0x80."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


class ByteStream:
    """Reads from the front of some bytes."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def varint(self, least: int, most: int) -> int:
        """Read a number.

        Raises:
            BundleError: it is outside ``[least, most]``, or cut off.
        """
        number = 0
        for place in range(_MOST_VARINT_BYTES):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                break
        if not least <= number <= most:
            raise BundleError(f"a number at byte {self._at} is {number:,}, expected {least:,} to {most:,}")
        return number

    def take(self, count: int) -> bytes:
        """Read ``count`` bytes.

        Raises:
            BundleError: there are fewer.
        """
        part = self._content[self._at : self._at + count]
        if len(part) != count:
            raise BundleError(f"{count:,} bytes are needed at byte {self._at}, {len(part):,} are left")
        self._at += count
        return part

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.take(len(self._content) - self._at)
