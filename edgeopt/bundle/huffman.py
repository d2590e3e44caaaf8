"""Canonical Huffman codes of symbols ``0 .. K-1``: only their lengths are kept, and none has more than 15 bits.

Source: Huffman, "A Method for the Construction of Minimum-Redundancy Codes", 1952; lengths by the package-merge method
of Larmore and Hirschberg, "A Fast Algorithm for Optimal Length-Limited Huffman Codes", 1990.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import BundleError

MOST_BITS = 15
_CHUNK_BYTES = 1 << 16  # each of its bits is looked up at once
_CHUNK_SYMBOLS = 1 << 20

Symbols = NDArray[np.integer[Any]]


def code_lengths(counts: Sequence[int]) -> list[int]:
    """Return the bits of each symbol's code: the fewest in all for these counts, 0 for a symbol that never comes."""
    leaves = sorted((count, (symbol,)) for symbol, count in enumerate(counts) if count)
    if len(leaves) == 1:
        return [int(count > 0) for count in counts]
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(MOST_BITS):
        merged = sorted([*leaves, *packages])
        pairs = zip(merged[::2], merged[1::2], strict=False)
        packages = [(left[0] + right[0], left[1] + right[1]) for left, right in pairs]
    chosen = Counter(symbol for _, symbols in packages[: len(leaves) - 1] for symbol in symbols)
    return [chosen[symbol] for symbol in range(len(counts))]


def encode(symbols: Symbols, lengths: Sequence[int]) -> bytes:
    """Return the codes of ``symbols``, ``(N,)``, the highest bit of each first; the last byte is filled with zeros."""
    codes, bits = _codes(lengths), np.array(lengths)
    places = np.arange(MOST_BITS - 1, -1, -1)
    parts = []
    for start in range(0, len(symbols), _CHUNK_SYMBOLS):
        chunk = symbols[start : start + _CHUNK_SYMBOLS]
        written = (codes[chunk][:, None] >> places & 1).astype(np.uint8)
        parts.append(written[places < bits[chunk][:, None]])
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


def decode(stream: bytes, lengths: Sequence[int], count: int) -> Symbols:
    """Return the first ``count`` symbols of ``stream``, ``(count,)``.

    What follows each single bit is looked up for a whole chunk, and then it is walked from code to code.

    Raises:
        BundleError: the lengths are those of no code, or the stream ends too early or holds no code.
    """
    symbol_of, length_of = _table(lengths)
    content = np.frombuffer(stream + bytes(2), np.uint8).astype(np.uint32)
    found: list[Symbols] = []
    at = 0
    while count > 0:
        first = at // 8
        chunk = content[first : first + _CHUNK_BYTES + 2]
        if at >= 8 * len(stream):
            raise BundleError("a Huffman stream ends too early")
        three_bytes = chunk[:-2] << 16 | chunk[1:-1] << 8 | chunk[2:]
        ahead = (three_bytes[:, None] >> (9 - np.arange(8, dtype=np.uint32)) & 0x7FFF).ravel()
        places, end = _walk(length_of[ahead].tolist(), at - 8 * first, count)
        found.append(symbol_of[ahead[places]])
        count -= len(places)
        at = 8 * first + end
    if at > 8 * len(stream):
        raise BundleError("a Huffman stream ends too early")
    return np.concatenate(found) if found else np.empty(0, np.uint16)


def _walk(steps: Sequence[int], at: int, most: int) -> tuple[list[int], int]:
    """Return where up to ``most`` codes begin, and where the last one ends."""
    places: list[int] = []
    while at < len(steps) and len(places) < most:
        if not steps[at]:
            raise BundleError("a Huffman stream holds a code that does not exist")
        places.append(at)
        at += steps[at]
    return places, at


def _codes(lengths: Sequence[int]) -> NDArray[np.uint32]:
    """Return each symbol's code: they count up, shorter ones first, and symbols of one length in order."""
    codes = np.zeros(len(lengths), np.uint32)
    code = 0
    for length in range(1, MOST_BITS + 1):
        for symbol in np.flatnonzero(np.array(lengths) == length):
            codes[symbol] = code
            code += 1
        code <<= 1
    return codes


def _table(lengths: Sequence[int]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return for each 15 bits that may come next the symbol and the length of its code, 0 where there is none."""
    order = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    spans = [1 << MOST_BITS - length for length, _ in order]
    gap = (1 << MOST_BITS) - sum(spans)
    if gap < 0:
        raise BundleError("the lengths of a Huffman code are those of no code")
    symbols = np.repeat(np.array([symbol for _, symbol in order] + [0], np.uint16), [*spans, gap])
    return symbols, np.repeat(np.array([length for length, _ in order] + [0], np.uint8), [*spans, gap])
