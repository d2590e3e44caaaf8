"""Coded models: the same bytes come back, the bits are those that entropy says, and what is damaged is refused."""

import heapq
import math
import random
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_project import ROOT

from edgeopt.bundle import coding, coding_forms, huffman
from edgeopt.bundle.byte_stream import varint
from edgeopt.bundle.coding import CodedTensor, coded_size, decode_model
from edgeopt.bundle.weight_buffers import Constant, find_places, read_constants
from edgeopt.errors import BundleError, ModelError

C_SOURCES = ROOT / "edgeopt" / "bundle" / "c"
ROWS, COLUMNS = 200, 500
DENSITY, NUM_VALUES = 0.05, 16


def pruned(seed: int = 0, density: object = DENSITY, shape: tuple[int, int] = (ROWS, COLUMNS)) -> np.ndarray:
    """Return int8 weights of which a share is one of sixteen values, all alike probable, and the others are 0."""
    generator = np.random.default_rng(seed)
    values = np.array([*range(-40, 0, 5), *range(5, 41, 5)], np.int8)
    assert len(values) == NUM_VALUES
    return np.where(generator.random(shape) < density, generator.choice(values, shape), np.int8(0))


def model_of(folder: Path, **weights: np.ndarray) -> Path:
    """Write an ONNX file with these initializers."""
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in weights]
    outputs = [helper.make_tensor_value_info(f"{name}_out", item.data_type, item.dims) for name, item in
               zip(weights, initializers, strict=True)]  # fmt: skip
    graph = helper.make_graph(nodes, "weights", [], outputs, initializers)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def tensors(path: Path) -> dict[str, CodedTensor]:
    return {tensor.name: tensor for tensor in coded_size(path).tensors}


# ---------------------------------------------------------------- Huffman codes


def test_code_lengths_are_those_of_huffmans_tree_when_counts_are_powers_of_two() -> None:
    assert huffman.code_lengths([1, 1, 2, 4, 0]) == [3, 3, 2, 1, 0]
    assert huffman.code_lengths([5, 0]) == [1, 0]
    assert huffman.code_lengths([0, 0]) == [0, 0]


def test_code_lengths_stay_under_sixteen_when_huffmans_tree_is_deeper() -> None:
    counts = [1, 1]  # Fibonacci's numbers make the deepest tree: 29 bits for 30 symbols
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    lengths = huffman.code_lengths(counts)
    assert max(lengths) == huffman.MOST_BITS
    assert sum(2.0**-length for length in lengths) == 1
    bits = sum(count * length for count, length in zip(counts, lengths, strict=True))
    tree, least = list(counts), 0
    while len(tree) > 1:  # Huffman's own tree: each merge takes a bit more for all below it
        heapq.heapify(tree)
        least += (merged := heapq.heappop(tree) + heapq.heappop(tree))
        tree.append(merged)
    assert least < bits < 1.001 * least


def test_codes_are_canonical_when_written_by_hand() -> None:
    # Shorter codes first, then by symbol: 3 is 0, 2 is 10, 0 is 110, 1 is 111.
    stream = huffman.encode(np.array([3, 2, 0, 1]), [3, 3, 2, 1])
    assert stream == bytes([0b01011011, 0b10000000])
    assert huffman.decode(stream, [3, 3, 2, 1], 4).tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize(
    ("stream", "lengths", "count"),
    [
        (b"\x00", [1, 1, 1], 1),  # three codes of one bit
        (b"\xff", [2, 2], 1),  # 11 is no code
        (b"\x00", [1, 1], 9),  # nine bits of eight
        (b"", [1], 1),
        (b"\xff", [0, 0], 1),
    ],
)
def test_huffman_refuses_what_is_no_code_or_too_short(stream: bytes, lengths: list[int], count: int) -> None:
    with pytest.raises(BundleError, match="Huffman"):
        huffman.decode(stream, lengths, count)


# ---------------------------------------------------------------- forms


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    item_bytes=st.sampled_from(coding_forms.ITEM_BYTES),
    width=st.integers(1, 40),
    num_values=st.sampled_from([1, 2, 3, 17, 90, 256, 300]),
    common=st.floats(0, 1),
)
def test_every_form_gives_back_the_tensor(
    data: st.DataObject, item_bytes: int, width: int, num_values: int, common: float
) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = np.frombuffer(generator.bytes(item_bytes * num_values), f"<i{item_bytes}")
    count = data.draw(st.integers(1, 700))
    items = np.where(generator.random(count) < common, values[0], generator.choice(values, count))
    content = items.astype(f"<i{item_bytes}").tobytes()
    forms = coding_forms.encodings(content, item_bytes, width)
    assert {"raw", "lzma", "huffman"} <= set(forms)
    for form, stored in forms.items():
        assert coding_forms.decode(form, stored, len(content)) == content, form


def test_sparse_bridges_gaps_that_are_longer_than_any_of_its_codes() -> None:
    weights = np.zeros(100_000, np.int8)
    weights[[0, 70_000, 99_999]] = [1, 2, 1]
    stored = coding_forms.encodings(weights.tobytes(), 1, 1000)["sparse"]
    assert coding_forms.decode("sparse", stored, weights.nbytes) == weights.tobytes()


@pytest.mark.parametrize("block_size", [4, 16, 64, 256])
def test_blocks_take_four_bits_and_their_factors_when_items_are_numbers_times_a_factor(block_size: int) -> None:
    weights = in_blocks(block_size, (50, 192))
    forms = coding_forms.encodings(weights.tobytes(), 1, 192)
    assert coding_forms.decode("blocks", forms["blocks"], weights.nbytes) == weights.tobytes()
    factors = 50 * math.ceil(192 / block_size)
    expected = (weights.size * math.log2(15) + factors * math.log2(18)) / 8  # all alike probable
    assert expected < len(forms["blocks"]) < 1.06 * expected + 40
    assert min(forms, key=lambda name: len(forms[name])) == "blocks"


def test_blocks_are_not_found_when_one_weight_is_between_two_numbers() -> None:
    weights = in_blocks()
    weights[3, 40] = 19  # no number of 4 bits times a factor up to 18
    assert "blocks" not in coding_forms.encodings(weights.tobytes(), 1, 80)


# ---------------------------------------------------------------- bits against entropy


def test_bits_are_those_of_the_entropy_when_pruned_and_shared(tmp_path: Path) -> None:
    # Whether a weight is there is worth H(0.05) = 0.2864 bits, which of sixteen values it has four bits more.
    position_bits = -DENSITY * math.log2(DENSITY) - (1 - DENSITY) * math.log2(1 - DENSITY)
    assert round(position_bits, 4) == 0.2864
    entropy_bytes = ROWS * COLUMNS * (position_bits + DENSITY * 4) / 8  # 6,080
    path = model_of(tmp_path, weights=pruned())
    tensor = tensors(path)["weights"]
    assert (tensor.num_weights, tensor.num_items, tensor.num_values) == (ROWS * COLUMNS, ROWS * COLUMNS, 17)
    assert tensor.zeros == pytest.approx(0.95 * ROWS * COLUMNS, rel=0.01)
    assert tensor.form == "range"
    assert tensor.coded_bytes == tensor.sizes["range"] == pytest.approx(entropy_bytes, rel=0.02)
    # Distances of a geometric distribution cost Huffman's code little over their entropy, and so do even values.
    assert tensor.sizes["sparse"] == pytest.approx(1.02 * entropy_bytes, rel=0.02)
    # No code is shorter than a bit: 1 for each zero, and 1 + 4 for each other weight.
    assert tensor.sizes["huffman"] == pytest.approx(ROWS * COLUMNS * (0.95 + DENSITY * 5) / 8, rel=0.02)
    assert tensor.sizes["lzma"] > 1.1 * entropy_bytes
    assert ("zstd" in tensor.sizes) == (find_spec("zstandard") is not None)
    model = coded_size(path)
    assert model.float_bytes == 4 * ROWS * COLUMNS
    assert model.compression_ratio == model.float_bytes / len(model.content)
    assert 60 < model.compression_ratio < 4 * ROWS * COLUMNS / entropy_bytes * 1.01


def test_range_takes_less_than_independent_weights_would_when_rows_and_columns_are_pruned(tmp_path: Path) -> None:
    # Half of the columns are empty, the others hold 10 %: 0.5 H(0.1) = 0.2345 bits, and four for each value.
    columns = np.random.default_rng(3).permutation(np.where(np.arange(COLUMNS) % 2, 0.1, 0.0))
    aware_bits = 0.5 * -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)) + DENSITY * 4
    tensor = tensors(model_of(tmp_path, weights=pruned(density=columns)))["weights"]
    assert tensor.sizes["range"] == pytest.approx(ROWS * COLUMNS * aware_bits / 8, rel=0.04)
    assert tensor.sizes["range"] < 0.95 * tensor.sizes["sparse"]


def test_float_weights_take_the_bits_of_their_ranks_when_they_share_few_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=16).astype(np.float32)
    weights = np.random.default_rng(1).choice(values, (ROWS, COLUMNS))
    tensor = tensors(model_of(tmp_path, weights=weights))["weights"]
    assert (tensor.form, tensor.num_values) == ("huffman", 16)
    assert tensor.coded_bytes == pytest.approx(ROWS * COLUMNS / 2 + 16 * 4.5, abs=ROWS * COLUMNS * 0.01)


def test_noise_takes_its_own_bytes_and_a_small_header(tmp_path: Path) -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(20_000), np.int8)
    model = coded_size(model_of(tmp_path, weights=noise.reshape(100, 200)))
    assert model.tensors[0].form == "raw"
    assert model.size_bytes < 20_000 + 250


# ---------------------------------------------------------------- model files


def in_blocks(block_size: int = 32, shape: tuple[int, int] = (20, 80)) -> np.ndarray:
    """Return weights of 4 bits with a factor from 1 to 18 for each block of a row, the last one smaller."""
    generator = np.random.default_rng(8)
    factors = generator.integers(1, 19, (shape[0], -(-shape[1] // block_size))).repeat(block_size, axis=1)
    return (generator.integers(-7, 8, shape) * factors[:, : shape[1]]).astype(np.int8)


def several(folder: Path) -> Path:
    """A model with a tensor for each form."""
    generator = np.random.default_rng(7)
    return model_of(
        folder,
        pruned=pruned(1, shape=(30, 50)),
        shared=generator.choice(generator.normal(size=5).astype(np.float32), (20, 30)),
        dense=generator.normal(0, 3, (30, 40)).round().astype(np.int8),
        ramp=np.arange(300, dtype=np.int64),
        noise=generator.integers(-(2**31), 2**31, 50).astype(np.int32),
        same=np.zeros(400, np.int32),
        blocks=in_blocks(),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return several(tmp_path_factory.mktemp("coding"))


def in_form(form: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the model coded with one form wherever it can be taken."""

    def only(content: bytes, item_bytes: int, width: int) -> dict[str, bytes]:
        found = coding_forms.encodings(content, item_bytes, width)
        return {form: found[form]} if form in found else dict(found)

    with monkeypatch.context() as patch:
        patch.setattr(coding, "encodings", only)
        return coded_size(model).content


def test_model_comes_back_byte_for_byte_when_decoded(model: Path) -> None:
    coded = coded_size(model)
    assert decode_model(coded.content) == model.read_bytes()
    forms = {tensor.name: tensor.form for tensor in coded.tensors}
    assert forms == {
        "pruned": "range", "shared": "huffman", "dense": "huffman", "ramp": "lzma", "noise": "raw", "same": "range",
        "blocks": "blocks",
    }  # fmt: skip
    assert coded.size_bytes == coded.rest_bytes + sum(tensor.coded_bytes for tensor in coded.tensors)


def test_model_gives_the_same_bytes_when_coded_again_from_elsewhere(model: Path, tmp_path: Path) -> None:
    again = several(tmp_path)
    assert coded_size(again) == coded_size(model)


def test_weights_are_counted_without_scales_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    constants = {
        "weight": np.ones((4, 3), np.int8), "scale": np.ones(4, np.float32), "zero": np.zeros(4, np.int8),
        "bias": np.ones(4, np.int32), "bias_scale": np.ones(4, np.float32), "shape": np.array([1, 4]),
        "slope": np.ones(4, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["b"], axis=0),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    outputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "counted", [], outputs, initializers)), path)
    counted = {constant.name: constant.num_weights for constant in read_constants(path, path.read_bytes())}
    assert counted == {"weight": 12, "scale": 0, "zero": 0, "bias": 4, "bias_scale": 0, "shape": 0, "slope": 4}


def test_places_do_not_overlap_when_one_tensor_lies_inside_another() -> None:
    big, small = bytes(100) + b"x" * 40, bytes(40)
    content = b"head" + big + b"between" + small + b"tail"
    constants = [Constant(name, "int8", part, 1, 1, 0) for name, part in (("small", small), ("big", big))]
    assert [(at, constant.name) for at, constant in find_places(content, constants)] == [(4, "big"), (151, "small")]
    lost = Constant("lost", "int8", b"not in the file", 1, 1, 0)
    assert find_places(content, [lost]) == []


@pytest.mark.parametrize(("name", "content"), [("model.tflite", b"\xff" * 64), ("model.onnx", b"\xff"), ("x.txt", b"")])
def test_code_refuses_what_is_no_model(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        coded_size(tmp_path / name)


# ---------------------------------------------------------------- hostile input


def damaged(content: bytes, seed: int) -> bytes:
    """Return coded content with a few bytes changed, most of them where headers are, or cut, or with bytes put in."""
    generator = random.Random(seed)
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = min(int(generator.expovariate(1 / 150)), len(changed) - 1) if generator.random() < 0.7 else 0
        at = at or generator.randrange(len(changed))
        kind = generator.random()
        if kind < 0.6:
            changed[at] = generator.choice([changed[at] ^ 1 << generator.randrange(8), 0, 0x7F, 0xFF])
        elif kind < 0.8:
            del changed[at : at + generator.randint(1, 5)]
        else:
            changed[at:at] = generator.randbytes(generator.randint(1, 5))
    return bytes(changed)


def damaged_files(model: Path, monkeypatch: pytest.MonkeyPatch, num: int) -> Iterator[bytes]:
    for form in coding_forms.FORMS:
        content = in_form(form, model, monkeypatch)
        yield from (damaged(content, seed) for seed in range(num))


def test_decode_gives_the_model_or_refuses_when_bytes_were_changed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.read_bytes()
    num_refused = 0
    for content in damaged_files(model, monkeypatch, 60):
        try:
            assert decode_model(content) == original  # what was changed did not matter
        except BundleError:
            num_refused += 1
    assert num_refused > 280


def test_decode_refuses_every_length_when_the_file_is_cut(model: Path) -> None:
    content = coded_size(model).content
    for size in [*range(120), *range(120, len(content), 97)]:
        with pytest.raises(BundleError):
            decode_model(content[:size])


def container(form: int, stored: bytes, size: int, checksum: int = 0) -> bytes:
    """Return a coded file of one tensor and nothing else."""
    table = b"".join(map(varint, (size, 1, 0, size, len(stored), form)))
    return b"EOC1" + checksum.to_bytes(4, "little") + table + varint(0) + varint(0) + stored


def test_decode_refuses_before_it_takes_memory_when_few_bytes_stand_for_billions() -> None:
    one_value = varint(1) + varint(1) + b"\0"
    for form, stored in ((3, one_value + bytes(8)), (4, one_value + varint(0) + varint(1) + varint(1))):
        with pytest.raises(BundleError, match=r"has 2,147,483,647 items, expected at most 67,108,864"):
            decode_model(container(form, stored, 2**31 - 1))


HOSTILE = [
    (0, b"ab", 3, "has 2 bytes, expected 3"),
    (1, b"\xff\0\0\0\0\0", 4, "LZMA stream is damaged"),
    (1, b"", 4, "LZMA stream is damaged|has 0 bytes"),
    (2, varint(3), 3, "items of 3"),
    (2, varint(4) + varint(1), 6, "items of 4"),
    (2, varint(1) + varint(0), 4, "expected 1 to 4,096"),
    (2, varint(1) + varint(5000), 4, "expected 1 to 4,096"),
    (3, varint(1) + varint(1) + b"\0" + varint(1), 4, "expected 0 to 0"),
    # One entry, gaps of up to 8 with a code of one bit for 7: behind the fourth item there is no eighth.
    (3, b"\1\1\0" + b"\0\1\x08\1" + b"\0\0\0\x01" + b"\0" + b"\x10" + b"\0", 4, "lead past its end"),
    (4, varint(1) + varint(1) + b"\0" + varint(0) + varint(0) + varint(1), 4, "expected 1 to 4"),
    (4, varint(1) + varint(1) + b"\0" + varint(0) + varint(4) + varint(1), 4, "codebook does not list|CRC-32"),
    # The same with items of eight bytes: behind the codebook the file ends, and a value that is not listed lies there.
    (4, varint(8) + varint(1) + bytes(8) + varint(0) + varint(4) + varint(1), 32, "codebook does not list"),
    (5, varint(0), 4, "expected 1 to 4"),
    (5, varint(4) + varint(0), 4, "expected 1 to 4"),
    (5, varint(4) + varint(5), 4, "expected 1 to 4"),
    (5, varint(3) + varint(3) + varint(0), 4, "4 bytes has rows of 3"),
    (5, varint(4) + varint(4) + varint(1) + bytes(10), 4, "1 bytes are needed"),
    (
        5,
        varint(4) + varint(4) + varint(1) + b"\x10" + bytes(9) + b"\0" + b"\x10" + bytes(7) + b"\x80",
        4,
        "code that does not exist",
    ),
]
"""Tensors that no encoder wrote: the form's number, what is stored, the bytes that it says to be, and what is said."""


@pytest.mark.parametrize(("form", "stored", "size", "message"), HOSTILE)
def test_decode_says_what_is_wrong_when_a_tensor_is_damaged(form: int, stored: bytes, size: int, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        decode_model(container(form, stored, size, checksum=1))


def test_decode_refuses_when_it_is_no_coded_model(model: Path) -> None:
    with pytest.raises(BundleError, match="EOC1"):
        decode_model(model.read_bytes())


# ---------------------------------------------------------------- the decoder in C


@pytest.fixture(scope="module")
def decode_in_c(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[bytes]], list[bytes | int]]:
    """Decode in C, watched by AddressSanitizer and UBSan: the models, or what edgeopt_decode returns."""
    folder = tmp_path_factory.mktemp("decode")
    sources = [Path(__file__).with_name("decode.c"), C_SOURCES / "edgeopt_decode.c", C_SOURCES / "edgeopt_lzma.c"]
    options = ["-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["gcc", *options, "-Wall", "-Wextra", "-Werror", f"-I{C_SOURCES}", *map(str, sources)]
    subprocess.run([*command, "-o", "decode"], cwd=folder, check=True)

    def run(files: list[bytes], size: int) -> list[bytes | int]:
        (folder / "coded").write_bytes(b"".join(len(file).to_bytes(4, "little") + file for file in files))
        program = ["./decode", "coded", "models"]
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        models = (folder / "models").read_bytes()
        found: list[bytes | int] = []
        for code in map(int, done.stdout.split()):
            found.append(models[:size] if code == 0 else code)
            models = models[size:] if code == 0 else models
        assert models == b""
        return found

    return run


def test_c_gives_the_same_model_when_each_form_is_taken(
    decode_in_c: Callable[..., list[bytes | int]], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.read_bytes()
    files = [coded_size(model).content, *(in_form(form, model, monkeypatch) for form in coding_forms.FORMS)]
    assert decode_in_c(files, len(original)) == [original] * len(files)


def test_c_gives_the_same_model_when_contexts_are_full_and_densities_extreme(
    decode_in_c: Callable[..., list[bytes | int]], tmp_path: Path
) -> None:
    # The last columns are full, and in one of ten rows the others are too: there more than all are expected of them.
    is_full_row, is_full_column = np.arange(ROWS) % 10 == 9, np.arange(COLUMNS) >= 400
    weights = pruned(4, density=is_full_row[:, None] | is_full_column)
    path = model_of(tmp_path, weights=weights)
    coded = coded_size(path)
    assert coded.tensors[0].form == "range"
    assert decode_in_c([coded.content], path.stat().st_size) == [path.read_bytes()]


def test_c_gives_the_model_or_refuses_when_bytes_were_changed(
    decode_in_c: Callable[..., list[bytes | int]], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.read_bytes()
    files = list(damaged_files(model, monkeypatch, 300))
    found = decode_in_c(files, len(original))
    assert len(found) == len(files)
    assert {answer for answer in found if isinstance(answer, int)} >= {1, 3}
    assert all(answer == original for answer in found if isinstance(answer, bytes))
    # What Python takes, C takes, and the other way round.
    for content, answer in list(zip(files, found, strict=True))[::10]:
        try:
            expected = decode_model(content)
        except BundleError:
            assert answer != original
        else:
            assert answer == expected


def test_c_refuses_before_it_asks_for_memory_when_its_size_would_not_fit(
    decode_in_c: Callable[..., list[bytes | int]],
) -> None:
    # Columns for so wide a row take 4 GiB, which is 0 in 32 bits.
    stored = varint(1) + varint(1) + b"\0" + varint(0) + varint(2**30 - 68) + varint(1)
    assert decode_in_c([container(4, stored, 2**30)], 0) == [1]


def test_c_refuses_what_no_encoder_wrote(decode_in_c: Callable[..., list[bytes | int]]) -> None:
    files = [container(form, stored, size) for form, stored, size, _ in HOSTILE]
    assert set(decode_in_c(files, 0)) <= {1, 3}
