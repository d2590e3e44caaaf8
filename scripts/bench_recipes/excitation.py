"""A small classifier in the style of EfficientNet-B0: swish, squeeze and excitation, inverted residuals."""

from __future__ import annotations

import torch
from shapes.preprocess import drawn, kinds_of
from torch import Tensor, nn

_SIDE, _NUM_PICTURES, _NUM_CLASSES = 48, 384, 8
_EPOCHS, _BATCH, _LEARNING_RATE = 10, 16, 0.004


class Excitation(nn.Module):
    """Multiply each channel by a share that the means of all channels say."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, tensor: Tensor) -> Tensor:
        """Return ``(N, C, H, W)`` scaled by channel."""
        means = tensor.mean((2, 3), keepdim=True)
        return tensor * torch.sigmoid(self.up(nn.functional.silu(self.down(means))))


class Inverted(nn.Module):
    """Expand, filter each channel, excite and project; with a residual where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int) -> None:
        super().__init__()
        wide = 4 * in_channels
        self.body = nn.Sequential(
            *_convolution(in_channels, wide), nn.SiLU(),
            *_convolution(wide, wide, size, stride, groups=wide), nn.SiLU(),
            Excitation(wide, in_channels // 4),
            *_convolution(wide, out_channels),
        )  # fmt: skip
        self.stays = in_channels == out_channels and stride == 1

    def forward(self, tensor: Tensor) -> Tensor:
        """Return ``(N, out, H / stride, W / stride)``."""
        found: Tensor = self.body(tensor)
        return tensor + found if self.stays else found


def build() -> nn.Module:
    """Return a classifier ``(N, 3, 48, 48)`` to ``(N, 8)``, trained on the spot on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return _trained(_network())
    finally:
        torch.set_num_threads(threads)


def _network() -> nn.Module:
    return nn.Sequential(
        *_convolution(3, 16, 3, 2), nn.SiLU(),
        Inverted(16, 24, 3, 2), Inverted(24, 24, 5, 1), Inverted(24, 32, 3, 2), Inverted(32, 32, 5, 1),
        *_convolution(32, 96), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, _NUM_CLASSES),
    )  # fmt: skip


def _trained(network: nn.Module) -> nn.Module:
    pairs = [drawn(seed, _SIDE, _SIDE) for seed in range(_NUM_PICTURES)]
    pictures = torch.stack([torch.from_numpy(picture) for picture, _ in pairs])
    classes = torch.tensor([kinds_of(mask) for _, mask in pairs])
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE)
    steps = _EPOCHS * _NUM_PICTURES // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(_NUM_PICTURES).split(_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pictures[chosen]), classes[chosen]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _convolution(
    in_channels: int, out_channels: int, size: int = 1, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(out_channels)
