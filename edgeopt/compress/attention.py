"""``nn.MultiheadAttention`` with a linear layer for each projection, so that whole heads can go.

torch's own module needs all heads to make up the width of its input, and keeps its projections in one parameter. The
split one answers alike, to the rounding of float32. As an edit: ``{"kind": "split_attention", "attentions": [names]}``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeopt.compress.structure import Edit
from edgeopt.errors import CompressionError


class SplitAttention(nn.Module):
    """Multi-head attention over ``num_heads`` heads of ``head_dim``; called as ``nn.MultiheadAttention`` is.

    Source: Vaswani et al.: Attention Is All You Need, 2017, arXiv 1706.03762, section 3.2.2.
    """

    # What nn.TransformerEncoderLayer looks at before it takes a short cut past this module: there is none to take.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = whole.num_heads, whole.head_dim
        self.batch_first, self.dropout = whole.batch_first, whole.dropout
        if whole.in_proj_weight is None:
            weights = [whole.q_proj_weight, whole.k_proj_weight, whole.v_proj_weight]
        else:
            weights = list(whole.in_proj_weight.chunk(3))
        biases = [None] * 3 if whole.in_proj_bias is None else list(whole.in_proj_bias.chunk(3))
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(whole.out_proj.weight, whole.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attended values, and the attention's weights if they are asked for."""
        if query.dim() == 3 and not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[..., None, None, :]):
            if mask is not None:
                scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        weights = functional.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        output = self.out_proj((weights @ v).transpose(-3, -2).flatten(-2))
        if query.dim() == 3 and not self.batch_first:
            output = output.transpose(0, 1)
        return output, (weights.mean(dim=-3) if average_attn_weights else weights) if need_weights else None

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """Turn ``(..., tokens, heads * head_dim)`` into ``(..., heads, tokens, head_dim)``."""
        return projected.reshape(*projected.shape[:-1], self.num_heads, self.head_dim).transpose(-3, -2)


def split_edit(model: nn.Module) -> Edit | None:
    """Return the edit that splits every attention of torch's that can be; nothing where there is none."""
    names = [
        name
        for name, module in model.named_modules()
        # Keys and values that belong to no token are not split: no head owns them.
        if isinstance(module, nn.MultiheadAttention) and module.bias_k is None and not module.add_zero_attn
    ]
    return {"kind": "split_attention", "attentions": names} if names else None


def split_attention(model: nn.Module, edit: Edit, _example_inputs: tuple[torch.Tensor, ...]) -> None:
    """Replace the attentions that the edit names, in place, with their weights.

    Raises:
        CompressionError: one of them is not there.
    """
    modules = dict(model.named_modules())
    for name in edit.get("attentions", ()):
        whole: Any = modules.get(name)
        if not isinstance(whole, nn.MultiheadAttention):
            raise CompressionError(
                f"structure: the network has no nn.MultiheadAttention {name!r}",
                hint="the network was changed since it was pruned: prune it again",
            )
        parent, _, own = name.rpartition(".")
        setattr(modules[parent], own, SplitAttention(whole).train(whole.training))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer
