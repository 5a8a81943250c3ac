"""Attention within the samples of a packed row, for transformers' models on torch's own kernels.

transformers keeps samples of a packed row apart by a mask over all pairs of tokens, so a row of eight samples costs
eight times the attention of its samples. This attention, registered with transformers under a name of its own, computes
each sample by itself instead; without packing it is transformers' `sdpa`. FlashAttention does the same by itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NAME = "sdpa_by_sample"
"""Name of the attention in a configuration of transformers."""

_packed = False
"""Whether the forward pass that runs is of a packed row, which needs no mask."""


@cache
def register() -> None:
    """Make the attention known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, by_sample)
    AttentionMaskInterface.register(NAME, mask)


@contextmanager
def packed(model: Any) -> Iterator[bool]:
    """Let a model on `sdpa` compute a packed row by its samples; False for another attention."""
    global _packed
    text = model.config.get_text_config()
    if text._attn_implementation == "sdpa":
        register()
        text._attn_implementation = NAME
    if text._attn_implementation != NAME:
        yield False
        return
    _packed = True
    try:
        yield True
    finally:
        _packed = False


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for a packed row, else that of `sdpa`."""
    if _packed:
        return None
    from transformers.masking_utils import sdpa_mask

    made: Tensor | None = sdpa_mask(*args, **kwargs)
    return made


def by_sample(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    samples: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention (1, tokens, heads, features) within each sample of a packed row.

    `query`, `key` and `value` are (1, heads, tokens, features), `samples` the tokens of each sample, one after another.
    Without `samples`, attention is that of transformers.
    """
    if samples is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return output, None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    results = []
    parts = (torch.split(tensor, list(samples), dim=2) for tensor in (query, key, value))
    for q, k, v in zip(*parts, strict=True):
        window = None
        if sliding_window is not None and q.shape[2] > sliding_window:
            places = torch.arange(q.shape[2], device=q.device)
            distance = places[:, None] - places
            window = (distance >= 0) & (distance < sliding_window)
        results.append(
            functional.scaled_dot_product_attention(
                q, k, v, attn_mask=window, dropout_p=dropout, scale=scaling, is_causal=window is None
            )
        )
    return torch.cat(results, dim=2).transpose(1, 2).contiguous(), None
