"""Sentence encoders of BERT's architecture, with the names that published weights have.

Source: Devlin et al., "BERT", arXiv 1810.04805; Reimers and Gurevych, "Sentence-BERT", arXiv 1908.10084 (the mean over
the tokens, of length 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Embeddings(nn.Module):
    """The sum of what a word, its place and its part of the text stand for, normalized."""

    def __init__(self, words: int, places: int, parts: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Embedding(places, width)
        self.token_type_embeddings = nn.Embedding(parts, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(places).unsqueeze(0))

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``(batch, length, width)`` for the ids of one text a row."""
        places = self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        return self.LayerNorm(self.word_embeddings(ids) + places + self.token_type_embeddings.weight[0])


class SelfAttention(nn.Module):
    """Every token looks at every other that the mask leaves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return what the tokens saw; ``mask`` is ``(batch, 1, 1, length)``, true for a token."""
        rows = (*hidden.shape[:2], self.heads, -1)
        query, key, value = (layer(hidden).view(rows).transpose(1, 2) for layer in (self.query, self.key, self.value))
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return seen.transpose(1, 2).reshape(hidden.shape)


class Residual(nn.Module):
    """A linear layer, added to what goes around it, normalized."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inside, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, inside: Tensor, around: Tensor) -> Tensor:
        """Return the sum."""
        return self.LayerNorm(self.dense(inside) + around)


class Layer(nn.Module):
    """Attention, then a fully connected part, each with a way around it."""

    def __init__(self, width: int, heads: int, inside: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(width, heads), "output": Residual(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inside)})
        self.output = Residual(inside, width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the next layer's input."""
        hidden = self.attention["output"](self.attention["self"](hidden, mask), hidden)
        return self.output(functional.gelu(self.intermediate["dense"](hidden)), hidden)


class SentenceEncoder(nn.Module):
    """One vector of length 1 a sentence."""

    def __init__(self, words: int, width: int, layers: int, heads: int, inside: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(words, 512, 2, width)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(width, heads, inside) for _ in range(layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})  # in the weights, and not used

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return ``(batch, width)``."""
        hidden, mask = self.embeddings(input_ids), attention_mask[:, None, None, :] > 0
        for layer in self.encoder["layer"]:
            hidden = layer(hidden, mask)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


def minilm() -> nn.Module:
    """Return all-MiniLM-L6-v2, 22.7 million parameters."""
    return SentenceEncoder(30522, 384, 6, 12, 1536)
