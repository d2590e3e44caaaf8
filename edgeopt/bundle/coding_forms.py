"""The forms in which the bytes of one tensor are stored.

========  ======================================================================================================
form      what is stored
========  ======================================================================================================
raw       the bytes themselves
lzma      a byte for the parameters ``(5 pb + lp) 9 + lc``, and a raw LZMA stream
huffman   a codebook, the lengths of a Huffman code, and each value's code
sparse    a codebook, the rank of the common value, and of each other value how many common ones lie before it and
          which it is, both as Huffman codes; a gap that is too long for the code is bridged by a common value (Han et
          al., "Deep Compression", ICLR 2016, section 2). The rank is followed by the number of gaps, the least gap
          that is too long, and the bytes of the gaps' codes; then come the lengths and codes of gaps, then of values
range     a codebook, the rank of the common value, how many items lie in a row, the density of other values in 65,536
          parts, and the stream of an adaptive coder (:mod:`edgeopt.bundle.range_coding`)
blocks    how many bytes lie in a row and in a block, the last block of a row being what is left; the number of bytes
          of the factors' codes; the lengths and codes of each block's factor; then those of each byte, divided by its
          block's factor, plus 7
========  ======================================================================================================

A codebook is a tensor's different values in order, as signed integers of its item size; floats are taken for the
integers of the same bits. Before it stand the item size and how many values it lists; one of all 256 bytes is not
listed. Lengths of Huffman codes are half a byte each, the first in the upper half. Every other number is a varint
(:func:`edgeopt.bundle.byte_stream.varint`).
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.affine import BLOCK_INT4_MAX, INT4_MAX, MOST_BLOCK_FACTOR
from edgeopt.bundle import huffman, range_coding
from edgeopt.bundle.byte_stream import ByteStream, varint
from edgeopt.errors import BundleError
from edgeopt.steps.low_bit import BLOCK_SIZES

FORMS = ("raw", "lzma", "huffman", "sparse", "range", "blocks")  # the file has a form's place in this row
ITEM_BYTES = (1, 2, 4, 8)
_MOST_VALUES = 4096  # a longer codebook does not pay
_MOST_BYTES = 2**31 - 1
_ALL_BYTES = np.arange(-128, 128, dtype=np.int8)
_MOST_LISTED_BYTES = 85  # of more, the list and the lengths of codes take more than 256 lengths
_LEAST_COMMON_SHARE = 0.25  # where no value is so common, Huffman's code is as good as what follows
_MOST_SPARSE_ITEMS = 1 << 26  # a few bytes may stand for so many; the range coder takes seconds for each million
_GAP_LIMITS = (8, 16, 32, 64, 128, 256)
# lc, lp and pb: for bytes, for a flatbuffer's words, for words whose bytes are unlike. Long content gets the first.
_LZMA_PARAMETERS = ((3, 0, 0), (2, 0, 2), (0, 1, 1), (0, 2, 2))
_MOST_TRIED_BYTES = 1 << 16
_MOST_DICTIONARY_BYTES = 1 << 26

Symbols = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Codebook:
    """A tensor's different ``values``, ``(K,)``, the rank of each item among them, ``(N,)``, and the most frequent."""

    values: Symbols
    ranks: Symbols
    common: int


def encodings(content: bytes, item_bytes: int, width: int) -> Mapping[str, bytes]:
    """Return a tensor in each form that may be the smallest.

    Args:
        content: the tensor's bytes, at least one item.
        item_bytes: the size of an item, one of :data:`ITEM_BYTES`.
        width: how many items lie in a row.
    """
    found = {"raw": content, "lzma": _lzma(content)}
    blocks = _blocks(items_of(content, 1), width) if item_bytes == 1 else None
    if blocks is not None:
        found["blocks"] = blocks
    codebook = _find_codebook(content, item_bytes)
    if len(codebook.values) > _MOST_VALUES:
        return found
    listed = varint(item_bytes) + varint(len(codebook.values))
    if not _is_all_bytes(item_bytes, len(codebook.values)):
        listed += codebook.values.tobytes()
    found["huffman"] = listed + _huffman(codebook.ranks, len(codebook.values))
    common_share = np.count_nonzero(codebook.ranks == codebook.common) / len(codebook.ranks)
    if common_share >= _LEAST_COMMON_SHARE and len(codebook.ranks) <= _MOST_SPARSE_ITEMS:
        found["sparse"] = listed + min((_sparse(codebook, limit) for limit in _GAP_LIMITS), key=len)
        found["range"] = listed + _range(codebook, min(width, len(codebook.ranks)))
    return found


def decode(form: str, stored: bytes, size_bytes: int) -> bytes:
    """Return the ``size_bytes`` bytes of a tensor that was stored in a form.

    Raises:
        BundleError: what is stored is damaged.
    """
    if form == "raw":
        content = stored
    elif form == "lzma":
        content = _from_lzma(stored, size_bytes)
    elif form == "blocks":
        content = _from_blocks(ByteStream(stored), size_bytes)
    else:
        content = _from_codebook(form, ByteStream(stored), size_bytes)
    if len(content) != size_bytes:
        raise BundleError(f"a tensor in the form {form} has {len(content):,} bytes, expected {size_bytes:,}")
    return content


def lzma_form(content: bytes) -> tuple[str, bytes]:
    """Return what is no tensor as the smaller of raw and lzma, and which of them it is."""
    stored = _lzma(content)
    return ("lzma", stored) if len(stored) < len(content) else ("raw", content)


# ---------------------------------------------------------------- lzma


def _lzma(content: bytes) -> bytes:
    tried = _LZMA_PARAMETERS if len(content) <= _MOST_TRIED_BYTES else _LZMA_PARAMETERS[:1]
    return min((_lzma_with(content, *parameters) for parameters in tried), key=len)


def _lzma_with(content: bytes, lc: int, lp: int, pb: int) -> bytes:
    stream = lzma.compress(content, format=lzma.FORMAT_RAW, filters=_filters(lc, lp, pb, len(content)))
    return bytes([(pb * 5 + lp) * 9 + lc]) + stream


def _from_lzma(stored: bytes, size_bytes: int) -> bytes:
    rest, lc = divmod(stored[0], 9) if stored else (0, 0)
    pb, lp = divmod(rest, 5)
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(lc, lp, pb, size_bytes))
        return decoder.decompress(stored[1:], max_length=size_bytes)
    except (lzma.LZMAError, ValueError) as error:
        raise BundleError(f"an LZMA stream is damaged: {error}") from error


def _filters(lc: int, lp: int, pb: int, size_bytes: int) -> list[dict[str, int]]:
    """Return what the module lzma calls filters; what is coded is its own dictionary, as far as memory goes."""
    parameters = {"lc": lc, "lp": lp, "pb": pb, "dict_size": max(4096, min(size_bytes, _MOST_DICTIONARY_BYTES))}
    return [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, **parameters}]


# ---------------------------------------------------------------- blocks of 4 bits


def _blocks(items: Symbols, width: int) -> bytes | None:
    """Return bytes as numbers of 4 bits and a factor for each block, in the largest blocks that go, or None."""
    if np.abs(items.astype(np.int64)).max() > BLOCK_INT4_MAX or len(items) % width:
        return None
    for size in sorted({min(size, width) for size in BLOCK_SIZES}, reverse=True):
        padded = np.pad(items.reshape(-1, width), ((0, 0), (0, -width % size))).reshape(-1, size).astype(np.int64)
        factors = _factors(padded)
        if factors.all():
            numbers = (padded // factors[:, None] + INT4_MAX).reshape(len(items) // width, -1)[:, :width].ravel()
            coded = _huffman(factors, MOST_BLOCK_FACTOR + 1)
            header = varint(width) + varint(size) + varint(len(coded) - (MOST_BLOCK_FACTOR + 2) // 2)
            return header + coded + _huffman(numbers, 2 * INT4_MAX + 1)
    return None


def _factors(blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the largest factor of each block that makes 4 bits of its items ``(blocks, items)``, or 0."""
    factors = np.zeros(len(blocks), np.int64)
    for factor in range(1, MOST_BLOCK_FACTOR + 1):
        fits = (blocks % factor == 0).all(axis=1) & (np.abs(blocks).max(axis=1) <= INT4_MAX * factor)
        factors[fits] = factor
    return factors


def _from_blocks(stream: ByteStream, size_bytes: int) -> bytes:
    width = stream.varint(1, max(1, size_bytes))
    size = stream.varint(1, width)
    factor_bytes = stream.varint(0, _MOST_BYTES)
    num_rows, blocks_a_row = -(-size_bytes // width), -(-width // size)
    if size_bytes % width:
        raise BundleError(f"a tensor of {size_bytes:,} bytes has rows of {width:,}")
    factors = _from_huffman(stream, MOST_BLOCK_FACTOR + 1, num_rows * blocks_a_row, factor_bytes)
    numbers = _from_huffman(stream, 2 * INT4_MAX + 1, size_bytes).astype(np.int16) - INT4_MAX
    spread = factors.reshape(num_rows, blocks_a_row).repeat(size, axis=1)[:, :width].astype(np.int16)
    return (numbers.reshape(num_rows, width) * spread).astype(np.int8).tobytes()


# ---------------------------------------------------------------- forms with a codebook


def items_of(content: bytes, item_bytes: int) -> Symbols:
    """Return the items of a tensor as signed integers, ``(N,)``."""
    return np.frombuffer(content, f"<i{item_bytes}")


def _find_codebook(content: bytes, item_bytes: int) -> Codebook:
    items = items_of(content, item_bytes)
    values, ranks, counts = np.unique(items, return_inverse=True, return_counts=True)
    if item_bytes == 1 and len(values) > _MOST_LISTED_BYTES:
        return Codebook(_ALL_BYTES, items.astype(np.int64) + 128, int(values[counts.argmax()]) + 128)
    return Codebook(values, ranks, int(counts.argmax()))


def _is_all_bytes(item_bytes: int, num_values: int) -> bool:
    return item_bytes == 1 and num_values == len(_ALL_BYTES)


def _huffman(symbols: Symbols, num_values: int) -> bytes:
    """Return the lengths of a code for ``num_values`` values, and each symbol's code."""
    lengths = huffman.code_lengths(np.bincount(symbols, minlength=num_values).tolist())
    halves = [*lengths, 0][: num_values + num_values % 2]
    packed = bytes(upper << 4 | lower for upper, lower in zip(halves[::2], halves[1::2], strict=True))
    return packed + huffman.encode(symbols, lengths)


def _from_huffman(stream: ByteStream, num_values: int, count: int, num_bytes: int | None = None) -> Symbols:
    packed = stream.take((num_values + 1) // 2)
    lengths = [half for byte in packed for half in (byte >> 4, byte & 15)][:num_values]
    return huffman.decode(stream.rest() if num_bytes is None else stream.take(num_bytes), lengths, count)


def _sparse(codebook: Codebook, limit: int) -> bytes:
    """Return gaps shorter than ``limit`` and values; a longer gap is several of ``limit - 1`` and a common value."""
    others = np.flatnonzero(codebook.ranks != codebook.common)
    gaps = np.diff(others, prepend=-1) - 1
    ends = np.cumsum(gaps // limit + 1) - 1
    num_entries = int(ends[-1]) + 1 if len(ends) else 0
    written_gaps, values = np.full(num_entries, limit - 1), np.full(num_entries, codebook.common)
    written_gaps[ends], values[ends] = gaps % limit, codebook.ranks[others]
    coded_gaps = _huffman(written_gaps, limit)
    header = varint(codebook.common) + varint(num_entries) + varint(limit) + varint(len(coded_gaps) - (limit + 1) // 2)
    return header + coded_gaps + _huffman(values, len(codebook.values))


def _from_sparse(stream: ByteStream, num_values: int, count: int) -> Symbols:
    common = stream.varint(0, num_values - 1)
    num_entries = stream.varint(0, count)
    limit = stream.varint(1, _GAP_LIMITS[-1])
    gaps = _from_huffman(stream, limit, num_entries, stream.varint(0, _MOST_BYTES))
    values = _from_huffman(stream, num_values, num_entries)
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if num_entries and places[-1] >= count:
        raise BundleError("the gaps of a sparse tensor lead past its end")
    ranks = np.full(count, common, np.uint16)
    ranks[places] = values
    return ranks


def _range(codebook: Codebook, width: int) -> bytes:
    density, coded = range_coding.encode(codebook.ranks, codebook.common, len(codebook.values), width)
    return varint(codebook.common) + varint(width) + varint(density) + coded


def _from_range(stream: ByteStream, num_values: int, count: int) -> Symbols:
    common = stream.varint(0, num_values - 1)
    width = stream.varint(1, count)
    density = stream.varint(1, range_coding.FULL)
    ranks = range_coding.decode(stream.rest(), count, common, num_values, width, density)
    if int(ranks.max()) >= num_values:
        raise BundleError("a range-coded tensor has a value that its codebook does not list")
    return ranks


_READERS = {
    "huffman": _from_huffman,
    "sparse": _from_sparse,
    "range": _from_range,
}


def _from_codebook(form: str, stream: ByteStream, size_bytes: int) -> bytes:
    item_bytes = stream.varint(1, ITEM_BYTES[-1])
    if item_bytes not in ITEM_BYTES or size_bytes % item_bytes or not size_bytes:
        raise BundleError(f"a tensor of {size_bytes:,} bytes has items of {item_bytes}")
    num_values = stream.varint(1, _MOST_VALUES)
    if _is_all_bytes(item_bytes, num_values):
        values = _ALL_BYTES
    else:
        values = np.frombuffer(stream.take(num_values * item_bytes), f"<i{item_bytes}")
    count = size_bytes // item_bytes
    if form != "huffman" and count > _MOST_SPARSE_ITEMS:
        raise BundleError(f"a tensor in the form {form} has {count:,} items, expected at most {_MOST_SPARSE_ITEMS:,}")
    ranks = _READERS[form](stream, num_values, count)
    return bytes(values[ranks].tobytes())
