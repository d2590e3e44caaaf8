"""A small segmenter with what is hard for int8: PReLU, dilated and transposed convolutions, sums and joins."""

from __future__ import annotations

import torch
from shapes.preprocess import drawn
from torch import Tensor, nn

_SIDE, _NUM_PICTURES, _NUM_CLASSES = 48, 256, 4
_EPOCHS, _BATCH, _LEARNING_RATE = 8, 16, 0.01


class Segmenter(nn.Module):
    """Pictures ``(N, 3, H, W)`` with sides that 4 divides to scores ``(N, 4, H, W)``; 26,420 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.near = _block(3, 16, stride=2)
        self.deep = _block(16, 32, stride=2)
        self.context = nn.Sequential(_block(32, 32, dilation=2), _block(32, 32, dilation=4))
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 16, 2, stride=2, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
        self.scores = nn.ConvTranspose2d(32, _NUM_CLASSES, 2, stride=2)

    def forward(self, picture: Tensor) -> Tensor:
        """Return the scores of each pixel."""
        near = self.near(picture)
        deep = self.deep(near)
        deep = deep + self.context(deep)
        scores: Tensor = self.scores(torch.cat([near, self.up(deep)], dim=1))
        return scores


def build() -> nn.Module:
    """Return a segmenter trained on the spot, on one thread so that it is the same every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return _trained(Segmenter())
    finally:
        torch.set_num_threads(threads)


def _trained(network: Segmenter) -> nn.Module:
    pairs = [drawn(seed, _SIDE, _SIDE) for seed in range(_NUM_PICTURES)]
    pictures, masks = (torch.stack([torch.from_numpy(pair[index]) for pair in pairs]) for index in (0, 1))
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE)
    steps = _EPOCHS * _NUM_PICTURES // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(_NUM_PICTURES).split(_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pictures[chosen]), masks[chosen]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _block(in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.PReLU(out_channels))
