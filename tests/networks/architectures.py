"""Architectures that edge devices run, with seeded random weights: torchvision's definitions, ours where it has none.

Batch normalizations have seeded scales and shifts, and the running statistics of seeded data, so that activations keep
the ranges that a trained network would have.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgeopt.artifacts import TorchModel
from edgeopt.compress.prune import prune
from edgeopt.compress.rebuild import rebuild
from edgeopt.compress.step import StepContext, result_in
from edgeopt.recipe import load_recipe
from edgeopt.samples import Dataset, Split
from edgeopt.steps import PruneSettings

Shapes = dict[str, tuple[int, ...]]


def with_operators_declared() -> torch.library.Library | None:
    """Import torchvision; return what declares its operators if its own compiled ones do not load.

    The package index has it built for CUDA, and its import fails beside a PyTorch for the CPU, although its networks
    need no operator of its own: declaring the two that it describes is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    else:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", greedy_nms, "CPU")
    return library


def greedy_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Do what torchvision's nms does: indices of the boxes that no better one overlaps, best first."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        low = torch.maximum(boxes[index, :2], boxes[kept, :2])
        high = torch.minimum(boxes[index, 2:], boxes[kept, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        if not bool((shared / (areas[index] + areas[kept] - shared) > iou_threshold).any()):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


_LIBRARY = with_operators_declared()  # it has to outlive the module

from torchvision import models  # noqa: E402
from torchvision.models import segmentation, vision_transformer  # noqa: E402


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch normalization, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


class UNet(nn.Module):
    """Ronneberger et al. 2015 in small: two levels, transposed convolutions on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._double(3, 16), self._double(16, 32), self._double(32, 64)])
        self.rise = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)])
        self.up = nn.ModuleList([self._double(64, 32), self._double(32, 16)])
        self.head = nn.Conv2d(16, 4, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(convolution(inputs, outputs), convolution(outputs, outputs))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        top = self.down[0](image)
        middle = self.down[1](functional.max_pool2d(top, 2))
        x = self.down[2](functional.max_pool2d(middle, 2))
        for rise, beside, up in zip(self.rise, (middle, top), self.up, strict=True):
            x = up(torch.cat([rise(x), beside], 1))
        return self.head(x)


class DeepLab(nn.Module):
    """A small backbone under torchvision's DeepLabV3 head: dilated branches, image pooling, bilinear resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(convolution(3, 16, stride=2), convolution(16, 32, stride=2), convolution(32, 64))
        self.head = segmentation.deeplabv3.DeepLabHead(64, 5, (2, 4, 6))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        classes = self.head(self.backbone(image))
        return functional.interpolate(classes, size=image.shape[-2:], mode="bilinear", align_corners=False)


class Bottleneck(nn.Module):
    """Half of the channels through a residual pair of convolutions, then joined again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = convolution(channels, channels, 1, act=nn.SiLU)
        half = channels // 2
        self.pair = nn.Sequential(convolution(half, half, act=nn.SiLU), convolution(half, half, act=nn.SiLU))
        self.leave = convolution(channels + half, channels, 1, act=nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([left, right, right + self.pair(right)], 1))


class Pyramid(nn.Module):
    """Pooling of three widths, one behind the other, joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = convolution(channels, channels // 2, 1, act=nn.SiLU)
        self.leave = convolution(channels * 2, channels, 1, act=nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = [self.enter(x)]
        for _ in range(3):
            pooled.append(functional.max_pool2d(pooled[-1], 5, 1, 2))
        return self.leave(torch.cat(pooled, 1))


class Detector(nn.Module):
    """A YOLO of two scales with three anchors each; boxes are decoded as Ultralytics' YOLOv5 does it."""

    NUM_CLASSES = 3
    ANCHORS = (((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)), ((30.0, 61.0), (62.0, 45.0), (59.0, 90.0)))
    STRIDES = (8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            convolution(3, 16, stride=2, act=nn.SiLU), convolution(16, 32, stride=2, act=nn.SiLU), Bottleneck(32)
        )
        self.fine = nn.Sequential(convolution(32, 64, stride=2, act=nn.SiLU), Bottleneck(64))
        self.coarse = nn.Sequential(convolution(64, 64, stride=2, act=nn.SiLU), Bottleneck(64), Pyramid(64))
        self.merge = Bottleneck(128)
        width = 3 * (5 + self.NUM_CLASSES)
        self.heads = nn.ModuleList([nn.Conv2d(128, width, 1), nn.Conv2d(64, width, 1)])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.fine(self.stem(image))
        coarse = self.coarse(fine)
        raised = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        levels = (self.merge(torch.cat([raised, fine], 1)), coarse)
        found = [self._decode(head(x), level) for level, (head, x) in enumerate(zip(self.heads, levels, strict=True))]
        return torch.cat(found, 1)

    def _decode(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """Return ``(batch, boxes, centre x and y, width, height, objectness, classes)`` in pixels."""
        batch, _, rows, columns = x.shape
        stride, anchors = self.STRIDES[level], torch.tensor(self.ANCHORS[level]).view(1, 3, 1, 1, 2)
        x = x.view(batch, 3, 5 + self.NUM_CLASSES, rows, columns).permute(0, 1, 3, 4, 2).sigmoid()
        y, x_grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack([x_grid, y], 2).float() - 0.5
        centre, size, rest = x.split((2, 2, 1 + self.NUM_CLASSES), 4)
        decoded = torch.cat([(centre * 2 + grid) * stride, (size * 2) ** 2 * anchors, rest], 4)
        return decoded.view(batch, -1, 5 + self.NUM_CLASSES)


class SuppressingDetector(nn.Module):
    """The same, and of boxes that overlap only the best are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = Detector()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.detector(image)[0]
        centre, half = found[:, :2], found[:, 2:4] / 2
        boxes, scores = torch.cat([centre - half, centre + half], 1), found[:, 4]
        kept = torch.ops.torchvision.nms(boxes, scores, 0.45)  # what torchvision.ops.nms calls
        return boxes[kept], scores[kept]


class DsCnn(nn.Module):
    """The keyword spotter of Zhang et al. 2017, "Hello Edge", in its smallest size: 49 frames of 10 coefficients."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False)
        blocks = [nn.Sequential(convolution(64, 64, groups=64), convolution(64, 64, 1)) for _ in range(4)]
        self.layers = nn.Sequential(stem, nn.BatchNorm2d(64), nn.ReLU(), *blocks)
        self.classify = nn.Linear(64, 12)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.classify(functional.adaptive_avg_pool2d(self.layers(frames), 1).flatten(1))


class WakeWords(nn.Module):
    """The visual wake word net of MLPerf Tiny: MobileNetV1 with a quarter of the channels."""

    WIDTHS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *((128, 1),) * 5, (256, 2), (256, 1))

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [convolution(3, 8, stride=2)], 8
        for width, stride in self.WIDTHS:
            layers += [convolution(channels, channels, stride=stride, groups=channels), convolution(channels, width, 1)]
            channels = width
        self.layers, self.classify = nn.Sequential(*layers), nn.Linear(channels, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(functional.adaptive_avg_pool2d(self.layers(image), 1).flatten(1))


class Residual(nn.Module):
    """Two convolutions with a way round them, over one axis or two."""

    def __init__(self, conv: type[nn.Module], norm: type[nn.Module], inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            conv(inputs, outputs, 3, stride, 1),
            norm(outputs),
            nn.ReLU(),
            conv(outputs, outputs, 3, 1, 1),
            norm(outputs),
        )
        self.beside = conv(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.inner(x) + self.beside(x))


class ResNet8(nn.Module):
    """The image classification net of MLPerf Tiny, for 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Residual(nn.Conv2d, nn.BatchNorm2d, *sizes) for sizes in ((16, 16, 1), (16, 32, 2), (32, 64, 2))]
        self.layers, self.classify = nn.Sequential(convolution(3, 16), *blocks), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(functional.avg_pool2d(self.layers(image), 8).flatten(1))


class ResNet1d(nn.Module):
    """A residual net over time: six channels of a sensor."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Residual(nn.Conv1d, nn.BatchNorm1d, *sizes) for sizes in ((32, 32, 1), (32, 64, 2), (64, 64, 2))]
        stem = nn.Sequential(nn.Conv1d(6, 32, 7, 2, 3), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(3, 2, 1))
        self.layers, self.classify = nn.Sequential(stem, *blocks), nn.Linear(64, 5)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.classify(self.layers(signal).mean(-1))


class RecurrentSpotter(nn.Module):
    """A keyword spotter that reads 49 frames of 10 coefficients one after the other."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recur, self.classify = layer(10, 48, batch_first=True), nn.Linear(48, 12)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.classify(self.recur(frames)[0][:, -1])


@dataclass(frozen=True)
class Architecture:
    """How a network is built and what it takes."""

    build: Callable[[], nn.Module]
    inputs: Shapes

    def network(self) -> nn.Module:
        """Build the network, its weights and statistics from fixed seeds."""
        torch.manual_seed(3)
        return settled(self.build(), self.inputs)

    def samples(self, count: int, seed: int) -> list[dict[str, np.ndarray]]:
        """Return smooth random arrays in about [-2, 2]."""
        random = np.random.default_rng(seed)
        return [{name: smooth(random, shape) for name, shape in self.inputs.items()} for _ in range(count)]


def settled(network: nn.Module, inputs: Shapes) -> nn.Module:
    """Give batch normalizations seeded parameters, and the statistics of seeded data; return the network in eval."""
    random, network = np.random.default_rng(5), network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.6, 1.2)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        network(*(torch.from_numpy(np.concatenate([smooth(random, s) for _ in range(8)])) for s in inputs.values()))
    return network.eval()


def smooth(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return noise with large and small features along the last axes, as pictures and signals have them."""
    coarse = random.normal(size=(*shape[:2], *(-(-size // 8) for size in shape[2:])))
    for axis in range(2, len(shape)):
        coarse = coarse.repeat(8, axis).take(range(shape[axis]), axis)
    return (coarse + 0.3 * random.normal(size=shape)).clip(-2, 2).astype(np.float32)


def vit_tiny() -> nn.Module:
    """Touvron et al. 2021's ViT-Ti, with patches of 16 pixels."""
    network = vision_transformer.VisionTransformer(64, 16, 12, 3, 192, 768, num_classes=10)
    nn.init.normal_(network.heads.head.weight, 0, 0.1)  # torchvision begins with zeros, and would answer with them
    return network


def mnist5k_student() -> nn.Module:
    """The network that the built-in recipe mnist5k ships, pruned as it says but not trained."""
    recipe = load_recipe("mnist5k").recipe
    with tempfile.TemporaryDirectory() as folder:

        def build(artifact: TorchModel) -> nn.Module:
            return rebuild(recipe.model, Path(folder), artifact)

        step = recipe.compress["prune"]
        assert isinstance(step, PruneSettings)
        inputs = (torch.zeros(1, 1, 28, 28),)
        prune(StepContext(build, TorchModel(), TorchModel(), inputs, _no_samples, round_to=8), step, Path(folder))
        return build(result_in(Path(folder)))


def _no_samples(split: Split) -> Dataset:
    raise AssertionError(f"pruning by weights asks for no samples of {split}")


IMAGE: Shapes = {"image": (1, 3, 64, 64)}
FRAMES: Shapes = {"frames": (1, 49, 10)}

ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(models.resnet18, IMAGE),
    "resnet50": Architecture(models.resnet50, IMAGE),
    "mobilenet_v3_small": Architecture(models.mobilenet_v3_small, IMAGE),
    "efficientnet_b0": Architecture(models.efficientnet_b0, IMAGE),
    "shufflenet_v2": Architecture(models.shufflenet_v2_x1_0, IMAGE),
    "densenet121": Architecture(models.densenet121, IMAGE),
    "squeezenet": Architecture(models.squeezenet1_1, IMAGE),
    "googlenet": Architecture(lambda: models.googlenet(aux_logits=False, init_weights=True), IMAGE),
    "unet": Architecture(UNet, IMAGE),
    "deeplab": Architecture(DeepLab, IMAGE),
    "yolo": Architecture(Detector, IMAGE),
    "ds_cnn": Architecture(DsCnn, {"frames": (1, 1, 49, 10)}),
    "wake_words": Architecture(WakeWords, {"image": (1, 3, 96, 96)}),
    "resnet8": Architecture(ResNet8, {"image": (1, 3, 32, 32)}),
    "mnist5k": Architecture(mnist5k_student, {"image": (1, 1, 28, 28)}),
    "gru": Architecture(lambda: RecurrentSpotter(nn.GRU), FRAMES),
    "lstm": Architecture(lambda: RecurrentSpotter(nn.LSTM), FRAMES),
    "vit_tiny": Architecture(vit_tiny, IMAGE),
    "resnet_1d": Architecture(ResNet1d, {"signal": (1, 6, 256)}),
}
SUPPRESSING = Architecture(SuppressingDetector, IMAGE)
TRANSFORMERS, RECURRENT = frozenset({"vit_tiny"}), frozenset({"gru", "lstm"})
MICROCONTROLLER = frozenset({"ds_cnn", "wake_words", "resnet8", "mnist5k", "resnet_1d"})
