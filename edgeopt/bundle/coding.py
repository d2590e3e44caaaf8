"""A model file with its weights coded, tensor by tensor, each in the form that takes the fewest bytes; nothing is lost.

What pruning and sharing gain does not show in a model file: a zero takes a byte there like any weight. Here it does,
and the file comes back byte for byte. The form of the file, of which ``edgeopt_decode.c`` is a second reader:

=================  =================================================================================================
bytes              what
=================  =================================================================================================
4                  ``EOC1``
4                  CRC-32 of the model file, the lowest byte first
varints            the model file's bytes; the number of tensors
for each tensor    varints: bytes of the model file between the tensor before and this one; this one's bytes; the
                   bytes in which it is coded; the number of its form (:data:`edgeopt.bundle.coding_forms.FORMS`)
varints            the bytes in which the rest of the model file is coded; the number of its form, raw or lzma
as said            the rest of the model file, which is all that lies between tensors, without a gap
as said            each tensor
=================  =================================================================================================
"""

from __future__ import annotations

import importlib
import importlib.util
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeopt.bundle.byte_stream import ByteStream, varint
from edgeopt.bundle.coding_forms import FORMS, decode, encodings, items_of, lzma_form
from edgeopt.bundle.weight_buffers import Constant, find_places, read_constants
from edgeopt.errors import BundleError, ModelError

SUFFIX = ".coded"
_MAGIC = b"EOC1"
_MOST_BYTES = 2**31 - 1
_MOST_TENSORS = 1 << 16
_LEAST_BYTES = 128  # smaller tensors take less together, in the rest
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class CodedTensor:
    """One constant of a model file, and what it takes in each form that was tried, in bytes.

    ``form`` is the smallest, or ``"rest"`` for a constant that is coded with the rest of the file. ``zeros`` and
    ``num_values`` (how many different ones) are counted over items as they are stored; of packed int4, over bytes.
    ``sizes`` says too what ``zstd`` would take, if the package zstandard is installed; no tensor is stored so.
    """

    name: str
    dtype: str
    num_weights: int
    num_items: int
    zeros: int
    num_values: int
    size_bytes: int
    form: str
    coded_bytes: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class CodedModel:
    """A model file as it was coded: ``content`` is the coded file, ``rest_bytes`` all of it that codes no tensor."""

    content: bytes
    model_bytes: int
    rest_bytes: int
    tensors: tuple[CodedTensor, ...]

    @property
    def size_bytes(self) -> int:
        """The coded file's bytes: codebooks, headers and everything."""
        return len(self.content)

    @property
    def float_bytes(self) -> int:
        """What the network's weights, biases too, take as float32."""
        return _FLOAT_BYTES * sum(tensor.num_weights for tensor in self.tensors)

    @property
    def compression_ratio(self) -> float:
        """How many times smaller the coded file is than the weights as float32 (Deep Compression's definition)."""
        return self.float_bytes / self.size_bytes


def coded_size(model_path: Path) -> CodedModel:
    """Code a ``.tflite`` or ``.onnx`` file and say what each tensor takes; the same file gives the same bytes.

    Raises:
        ModelError: it is neither, cannot be read, or has 2 GiB or more.
    """
    content = model_path.read_bytes()
    if len(content) > _MOST_BYTES:
        raise ModelError(f"{model_path.name} has {len(content):,} bytes, expected at most {_MOST_BYTES:,}")
    constants = read_constants(model_path, content)
    places = find_places(content, [constant for constant in constants if len(constant.content) >= _LEAST_BYTES])
    table, rest, bodies, end = b"", b"", b"", 0
    tensors = {id(constant): _accounted(constant, "rest", {}) for constant in constants}
    for at, constant in places:
        forms = encodings(constant.content, constant.item_bytes, constant.width)
        form = min(forms, key=lambda name: len(forms[name]))
        table += b"".join(map(varint, (at - end, len(constant.content), len(forms[form]), FORMS.index(form))))
        rest += content[end:at]
        bodies += forms[form]
        end = at + len(constant.content)
        tensors[id(constant)] = _accounted(constant, form, forms)
    form, stored_rest = lzma_form(rest + content[end:])
    header = _MAGIC + zlib.crc32(content).to_bytes(4, "little") + varint(len(content)) + varint(len(places))
    front = header + table + varint(len(stored_rest)) + varint(FORMS.index(form)) + stored_rest
    return CodedModel(front + bodies, len(content), len(front), tuple(tensors.values()))


def decode_model(coded: bytes) -> bytes:
    """Return the model file that was coded.

    Raises:
        BundleError: the file is damaged, or was made to look like a coded one.
    """
    stream = ByteStream(coded)
    if stream.take(len(_MAGIC)) != _MAGIC:
        raise BundleError("not a coded model: the identifier 'EOC1' is missing")
    checksum = int.from_bytes(stream.take(4), "little")
    left = stream.varint(0, _MOST_BYTES)
    places, rest_bytes = [], left
    for _ in range(stream.varint(0, _MOST_TENSORS)):
        between = stream.varint(0, left)
        size = stream.varint(0, left - between)
        places.append((between, size, stream.varint(0, len(coded)), FORMS[stream.varint(0, len(FORMS) - 1)]))
        left -= between + size
        rest_bytes -= size
    stored_bytes, form = stream.varint(0, len(coded)), FORMS[stream.varint(0, FORMS.index("lzma"))]
    rest = ByteStream(decode(form, stream.take(stored_bytes), rest_bytes))
    parts = []
    for between, size, stored_bytes, form in places:
        parts += [rest.take(between), decode(form, stream.take(stored_bytes), size)]
    content = b"".join([*parts, rest.rest()])
    if zlib.crc32(content) != checksum:
        raise BundleError("the coded model is damaged: its CRC-32 differs")
    return content


def _accounted(constant: Constant, form: str, forms: Mapping[str, bytes]) -> CodedTensor:
    items = items_of(constant.content, constant.item_bytes)
    return CodedTensor(
        name=constant.name,
        dtype=constant.dtype,
        num_weights=constant.num_weights,
        num_items=len(items),
        zeros=int((items == 0).sum()),
        num_values=len(np.unique(items)),
        size_bytes=len(constant.content),
        form=form,
        coded_bytes=len(forms.get(form, b"")),
        sizes={name: len(stored) for name, stored in forms.items()} | _zstd_size(constant.content if forms else b""),
    )


def _zstd_size(content: bytes) -> dict[str, int]:
    if not content or importlib.util.find_spec("zstandard") is None:
        return {}
    return {"zstd": len(importlib.import_module("zstandard").ZstdCompressor(level=22).compress(content))}
