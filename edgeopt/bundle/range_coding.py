"""An adaptive range coder for weights of which most have one value: where the others lie, and what they are.

A weight is coded as a flag, "it has not the common value", and then, bit by bit, which of the other values it has. A
bit costs the logarithm of its probability, and each context keeps its own, learned from what was coded before. What
tells a flag's probability is how dense its column and its row have been so far: pruning leaves whole inputs of a layer
nearly empty, and single outputs too. What tells a value is whether the one before it was below or above the common
value.

One function, :func:`_transfer`, walks over the weights for the encoder and for the decoder, so they cannot differ. All
is done in integers, as ``edgeopt_decode.c`` does it.

Source: the coder is that of LZMA (Pavlov, "LZMA specification", 2015, after Martin, "Range encoding", 1979); contexts
for the weights of networks are the idea of Wiedemann et al., "DeepCABAC", arXiv 1907.11900.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What a context knows, in one integer: the probability of a 1 in 22 bits, and in 10 the number of bits seen, plus 2.
# The first bits move it by 1/2, 1/3, ... of the way, which is Krichevsky's and Trofimov's rule.
_ONE = 1 << 22
_MOST_SEEN = (1 << 10) - 1
_UNKNOWN = _ONE // 2 << 10 | 2
_BOTTOM = 1 << 24  # a range that falls below this one gets another byte
_NUM_LEVELS = 33  # of density, two an octave
FULL = 1 << 16  # a density of 1

Symbols = NDArray[np.integer[Any]]
_Code = Callable[[list[int], int, int], int]


class _Encoder:
    def __init__(self) -> None:
        self._low, self._range, self._held, self._written = 0, 0xFFFFFFFF, [0], bytearray()

    def code(self, contexts: list[int], index: int, bit: int) -> int:
        """Write a bit, of which ``contexts[index]`` tells the probability and learns."""
        state = contexts[index]
        bound = (self._range >> 15) * (state >> 17)
        if bit:
            self._range = bound
        else:
            self._low += bound
            self._range -= bound
        contexts[index] = _learned(state, bit)
        while self._range < _BOTTOM:
            self._shift()
            self._range = self._range << 8 & 0xFFFFFFFF
        return bit

    def finish(self) -> bytes:
        """Return all bytes; the decoder takes zeros for those behind the last that is not zero."""
        # The number within the last range that has the most zeros.
        self._low = self._low + _BOTTOM - 1 & ~(_BOTTOM - 1)
        for _ in range(5):
            self._shift()
        # What came first of all is a byte for a carry out of 32 bits, and there is none.
        return bytes(self._written[1:]).rstrip(b"\0")

    def _shift(self) -> None:
        """Move the highest byte out: bytes that a later carry may still change are held back."""
        if not 0xFF000000 <= self._low <= 0xFFFFFFFF:
            carry = self._low >> 32
            self._written += bytes(byte + carry & 0xFF for byte in self._held)
            self._held.clear()
        self._held.append(self._low >> 24 & 0xFF)
        self._low = self._low << 8 & 0xFFFFFFFF


class _Decoder:
    def __init__(self, stream: bytes) -> None:
        self._rest = iter(stream)
        self._range, self._code = 0xFFFFFFFF, 0
        for _ in range(4):
            self._code = self._code << 8 | next(self._rest, 0)

    def code(self, contexts: list[int], index: int, bit: int) -> int:
        """Read a bit; what is given for it does not matter."""
        state = contexts[index]
        bound = (self._range >> 15) * (state >> 17)
        if self._code < bound:
            self._range, bit = bound, 1
        else:
            self._code -= bound
            self._range -= bound
            bit = 0
        contexts[index] = _learned(state, bit)
        while self._range < _BOTTOM:
            self._code = self._code << 8 | next(self._rest, 0)
            self._range <<= 8
        return bit


def encode(symbols: Symbols, common: int, num_values: int, width: int) -> tuple[int, bytes]:
    """Return the density and the stream that :func:`decode` takes.

    Args:
        symbols: ``(N,)``, ranks of values in ``0 .. num_values-1``.
        common: the rank of the value that most of them have.
        num_values: how many values there are.
        width: how many symbols lie in a row.
    """
    density = max(1, int(np.count_nonzero(symbols != common)) * FULL // len(symbols))
    encoder = _Encoder()
    _transfer(encoder.code, symbols, common, num_values, width, density)
    return density, encoder.finish()


def decode(stream: bytes, count: int, common: int, num_values: int, width: int, density: int) -> Symbols:
    """Return ``count`` symbols, ``(count,)``; any stream decodes to some."""
    symbols = np.full(count, common, np.uint16)
    _transfer(_Decoder(stream).code, symbols, common, num_values, width, density)
    return symbols


def _transfer(code: _Code, symbols: Symbols, common: int, num_values: int, width: int, density: int) -> None:
    """Code each symbol and put in its place what the coder returns."""
    depth = max(0, num_values - 2).bit_length()
    flags = [_UNKNOWN] * (2 * _NUM_LEVELS)
    trees = [[_UNKNOWN] * (1 << depth) for _ in range(2)]
    counts = np.zeros(width, np.int64)
    is_above = 0
    for number, start in enumerate(range(0, len(symbols), width)):
        row = symbols[start : start + width]
        # Both as if two rows, or two symbols of this row, of the whole tensor's density had come before.
        rates = (counts * FULL + 2 * density) // (number + 2)
        expected = np.cumsum(rates) - rates + 2 * FULL
        found, before = 0, 0
        in_row = zip(row.tolist(), rates.tolist(), expected.tolist(), strict=False)  # the last row may be shorter
        for column, (symbol, rate, due) in enumerate(in_row):
            estimate = min(FULL - 1, rate * (found + 2) * FULL // due)
            level = (estimate * estimate).bit_length()
            before = code(flags, 2 * level + before, int(symbol != common))
            if before:
                rank, node = symbol - (symbol > common), 1
                for place in range(depth - 1, -1, -1):
                    node = 2 * node + code(trees[is_above], node, rank >> place & 1)
                rank = node - (1 << depth)
                is_above = int(rank >= common)
                row[column] = rank + is_above
                counts[column] += 1
                found += 1


def _learned(state: int, bit: int) -> int:
    probability, seen = state >> 10, state & _MOST_SEEN
    probability += (_ONE - probability) // seen if bit else -(probability // seen)
    return probability << 10 | seen + (seen < _MOST_SEEN)
