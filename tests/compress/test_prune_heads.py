from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_nets import prune_stage, rebuilding
from torch import nn
from torch.nn import functional

from edgeopt.artifacts import TorchModel
from edgeopt.compress.attention import SplitAttention
from edgeopt.compress.layers import count_macs
from edgeopt.compress.rebuild import apply_structure
from edgeopt.compress.structure import Structure
from edgeopt.errors import CompressionError
from edgeopt.steps import PruneSettings

SHAPE = (1, 6, 8)


class Separate(nn.Module):
    """Attention as it is usually written by hand, with a layer each for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 2
        self.query, self.key, self.value, self.proj = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, _ = tokens.shape
        q, k, v = (
            layer(tokens).view(batch, count, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, count, -1))


class Fused(nn.Module):
    """Attention with one layer for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 2
        self.qkv, self.proj = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, _ = tokens.shape
        parts = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.proj(attended.transpose(1, 2).reshape(batch, count, -1))


class Interleaved(Separate):
    """Keeps the same channel of all heads side by side, not the channels of a head."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, _ = tokens.shape
        q, k, v = (
            layer(tokens).view(batch, count, self.head_dim, self.num_heads).permute(0, 3, 1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).permute(0, 2, 3, 1).reshape(batch, count, -1))


class Block(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.attention = attention()
        self.norm = nn.LayerNorm(8)
        self.up, self.down, self.classes = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(tokens)
        tokens = self.norm(tokens + self.attention(tokens))
        return self.classes((tokens + self.down(functional.gelu(self.up(tokens)))).mean(dim=1))


class TorchsOwn(nn.Module):
    """torch's encoder layers, which hold nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classes = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classes(self.encoder(tokens).mean(dim=1))


NETS = {
    "separate": (lambda: Block(Separate), ["attention"]),
    "fused": (lambda: Block(Fused), ["attention"]),
    "torch's own": (TorchsOwn, ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]),
}


def heads_only(**settings: object) -> PruneSettings:
    return PruneSettings(pruning_ratio=0, head_ratio=0.5, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("net", NETS)
def test_prune_removes_half_the_heads_when_the_head_ratio_is_a_half(tmp_path: Path, net: str) -> None:
    factory, attentions = NETS[net]
    build = rebuilding(factory, *SHAPE)
    torch.manual_seed(0)
    artifact, report = prune_stage(build, TorchModel(), SHAPE, heads_only(), 8, tmp_path)
    model = build(artifact).eval()

    assert [(change.name, change.channels_before, change.channels_after) for change in report.heads] == [
        (name, 4, 2) for name in attentions
    ]
    for name in attentions:
        attention = model.get_submodule(name)
        assert attention.num_heads == 2
        *made, used = (layer for layer in attention.modules() if isinstance(layer, nn.Linear))
        assert [layer.out_features for layer in made] in ([4, 4, 4], [12])
        assert used.in_features == 4
    assert model(torch.zeros(2, 6, 8)).shape == (2, 3)


@pytest.mark.parametrize("net", NETS)
def test_prune_takes_the_head_that_does_least_when_its_output_is_nearly_nothing(tmp_path: Path, net: str) -> None:
    factory, attentions = NETS[net]

    def weak() -> nn.Module:
        torch.manual_seed(0)
        model = factory().eval()
        for name in attentions:
            attention = model.get_submodule(name)
            out = attention.out_proj if isinstance(attention, nn.MultiheadAttention) else attention.proj
            out.weight.data[:, 4:6] = 0.0  # head 2 of 4
        return model

    build = rebuilding(weak, *SHAPE)
    settings = PruneSettings(pruning_ratio=0, head_ratio=0.25, importance="outgoing_l1")
    artifact, _ = prune_stage(build, TorchModel(), SHAPE, settings, 1, tmp_path)
    tokens = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(build(artifact).eval()(tokens), weak()(tokens), rtol=1e-4, atol=1e-5)


def test_prune_keeps_whole_heads_when_channels_go_beside_them(tmp_path: Path) -> None:
    build = rebuilding(lambda: Block(Separate), *SHAPE)
    settings = PruneSettings(pruning_ratio=0.5, head_ratio=0.25)
    artifact, report = prune_stage(build, TorchModel(), SHAPE, settings, 1, tmp_path)
    widths = {layer.name: layer.channels_after for layer in report.layers}

    assert widths == {
        "embed": 4, "attention.query": 6, "attention.key": 6, "attention.value": 6, "attention.proj": 4,
        "up": 8, "down": 4, "classes": 3,
    }  # fmt: skip
    assert build(artifact).norm.normalized_shape == (4,)


def test_prune_adds_up_when_heads_go_twice(tmp_path: Path) -> None:
    build = rebuilding(TorchsOwn, *SHAPE)
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    once, _ = prune_stage(build, TorchModel(), SHAPE, heads_only(), 1, tmp_path / "once")
    _, report = prune_stage(build, once, SHAPE, heads_only(), 1, tmp_path / "twice")

    assert [(change.channels_before, change.channels_after) for change in report.heads] == [(2, 1), (2, 1)]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_split_attention_answers_like_torchs_when_masks_are_given(*, batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(8, 4, bias=bias, batch_first=batch_first, kdim=6, vdim=5).eval()
    split = SplitAttention(whole).eval()
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 4, 6), torch.randn(2, 4, 5)  # samples, tokens, features
    tokens = [tensor if batch_first else tensor.transpose(0, 1) for tensor in (query, key, value)]
    padding = torch.tensor([[False, True, False, False], [False, False, True, True]])

    for options in ({}, {"attn_mask": torch.randn(3, 4)}, {"key_padding_mask": padding, "average_attn_weights": False}):
        for expected, actual in zip(whole(*tokens, **options), split(*tokens, **options), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert split(*tokens, need_weights=False)[1] is None


def test_count_macs_is_the_same_when_torchs_attention_is_split() -> None:
    whole = nn.MultiheadAttention(8, 4, batch_first=True, kdim=6, vdim=5).eval()
    tokens = torch.zeros(1, 3, 8), torch.zeros(1, 4, 6), torch.zeros(1, 4, 5)

    # 3 * 8 * 8 for the query and the output, 4 * 6 * 8 for the key, 4 * 5 * 8 for the value.
    assert count_macs(whole, tokens) == count_macs(SplitAttention(whole), tokens) == 2 * 192 + 192 + 160


def test_prune_refuses_when_heads_are_not_side_by_side(tmp_path: Path) -> None:
    build = rebuilding(lambda: Block(Interleaved), *SHAPE)
    with pytest.raises(CompressionError, match="answers otherwise without its heads") as caught:
        prune_stage(build, TorchModel(), SHAPE, heads_only(), 1, tmp_path)
    assert "head_ratio = 0" in str(caught.value.hint)


def test_prune_refuses_when_there_are_no_heads(tmp_path: Path) -> None:
    build = rebuilding(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), *SHAPE)
    with pytest.raises(CompressionError, match="no attention whose heads could go"):
        prune_stage(build, TorchModel(), SHAPE, heads_only(), 1, tmp_path)


class Squared(Separate):
    """Its code takes the width of the tokens for that of the heads."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, width = tokens.shape
        q, k, v = (
            layer(tokens).view(batch, count, self.num_heads, width // self.num_heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return self.proj(((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, count, width))


def test_prune_names_the_attention_when_its_code_does_not_follow(tmp_path: Path) -> None:
    build = rebuilding(lambda: Block(Squared), *SHAPE)
    with pytest.raises(CompressionError, match="group of layer 'attention' cannot be pruned: layer 'attention' cannot"):
        prune_stage(build, TorchModel(), SHAPE, heads_only(), 1, tmp_path)


@pytest.mark.parametrize(
    ("removal", "message"),
    [
        ({"attention": "attention", "makers": [], "users": ["proj"], "heads": [0]}, "proj"),
        (
            {"attention": "attention", "makers": [], "users": ["attention.proj"], "heads": [4]},
            "with 4 heads cannot lose",
        ),
        ({"attention": "attention"}, "heads"),
    ],
)
def test_apply_structure_refuses_when_heads_do_not_fit(removal: dict[str, object], message: str) -> None:
    edit = {"kind": "remove_heads", "removed": [removal]}
    with pytest.raises(CompressionError, match=message):
        apply_structure(Block(Separate), Structure(edits=(edit,)), (torch.zeros(SHAPE),))
