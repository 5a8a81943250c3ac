"""Layout of the samples of a batch: in rows, in padded rows, or several packed into one row.

Attention is within each sample. A batch of equal full rows is computed directly; any other batch, padded or packed, is
flattened to one row of real tokens, (1, t), and attention runs sample by sample, without padding or a mask.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Layout:
    """Layout of the samples in a (rows, columns) batch.

    `position_ids` (rows, columns) count within each sample, padding has 0. `lengths` (rows, columns or 1) are those of
    the samples that the tokens belong to. `sample_starts` are flat indices. `segments` is None for a batch of equal
    full rows and for steps on a cache.
    """

    position_ids: Tensor
    lengths: Tensor
    sample_starts: tuple[int, ...]
    segments: "Segments | None" = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Layout":
        """The same with each tensor changed, for copies to a device."""
        segments = self.segments.map(change) if self.segments is not None else None
        return Layout(change(self.position_ids), change(self.lengths), self.sample_starts, segments)


@dataclass(frozen=True)
class Segments:
    """Samples concatenated to one row of t tokens.

    `lengths` are the lengths of the samples, `bounds` (n + 1,) int32 their cumulative sum, on the device. `kept` (t,)
    are the flat indices of the real tokens in the padded batch; None if there is no padding.
    """

    lengths: tuple[int, ...]
    bounds: Tensor
    kept: Tensor | None

    @property
    def longest(self) -> int:
        """Length of the longest sample."""
        return max(self.lengths)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Segments":
        """The same with each tensor changed."""
        return Segments(self.lengths, change(self.bounds), None if self.kept is None else change(self.kept))

    def flatten(self, tensor: Tensor) -> Tensor:
        """(rows, columns, ...) -> (1, t, ...), without padding."""
        flat = tensor.flatten(0, 1)
        return (flat if self.kept is None else flat.index_select(0, self.kept))[None]

    def restore(self, tensor: Tensor, rows: int, columns: int) -> Tensor:
        """(1, t, ...) -> (rows, columns, ...), zeros at padding."""
        flat = tensor[0]
        if self.kept is not None:
            padded = flat.new_zeros((rows * columns, *flat.shape[1:]))
            flat = padded.index_copy(0, self.kept, flat)
        return flat.view(rows, columns, *flat.shape[1:])

    def restore_weights(self, weights: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Attention weights (1, heads, length, length) per sample -> (rows, heads, columns, columns), zeros between."""
        begins = self.bounds[:-1].long() if self.kept is None else self.kept[self.bounds[:-1].long()]
        whole = weights[0].new_zeros((rows, weights[0].shape[1], columns, columns))
        for piece, begin in zip(weights, begins.tolist(), strict=True):
            row, column = divmod(begin, columns)
            inside = slice(column, column + piece.shape[-1])
            whole[row, :, inside, inside] = piece[0]
        return whole


def plan_layout(
    rows: int,
    columns: int,
    device: torch.device,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    bounds: Tensor | None = None,
    num_cached: int | None = None,
) -> Layout:
    """Determine the layout of a batch from the model inputs.

    `attention_mask` (rows, cached + columns): 0 at padding, left or right. `position_ids` (1 or rows, columns): a
    position that does not increase begins a new sample. `bounds` (n + 1,): cumulative sum of the samples' lengths in
    one row, which takes precedence. `num_cached` is None without a cache; with a cache, packing is not possible.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        attention_mask = None  # a mask per query: positions are taken as given
    real = attention_mask[:, -columns:].bool() if attention_mask is not None else None
    given = position_ids
    if bounds is not None:
        position_ids = positions_from_bounds(bounds.to(device), rows, columns)
    elif position_ids is not None:
        position_ids = position_ids.to(device).expand(rows, columns)
    elif attention_mask is not None:
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -columns:]
    else:
        position_ids = torch.arange(columns, device=device).expand(rows, columns) + (num_cached or 0)
    if real is not None:
        position_ids = position_ids.masked_fill(~real, 0)
    row_starts = tuple(range(0, rows * columns, columns))
    row_lengths = position_ids.amax(dim=1, keepdim=True) + 1 if columns else position_ids
    if num_cached is not None:
        falls = position_ids[:, 1:] < position_ids[:, :-1]
        falls = falls if real is None else falls & real[:, 1:]
        if columns > 1 and given is not None and bool(falls.any()):
            raise ValueError("position_ids restart inside a row: packed rows cannot use a cache, pass use_cache=False")
        return Layout(position_ids, row_lengths, row_starts)
    packed = bounds is not None or (given is not None and bool((position_ids[:, 1:] <= position_ids[:, :-1]).any()))
    if not packed and (real is None or bool(real.all())):
        return Layout(position_ids, row_lengths, row_starts)
    return _segmented(position_ids, real)


def _segmented(position_ids: Tensor, real: Tensor | None) -> Layout:
    """Layout of a padded or packed batch; see `plan_layout`."""
    rows, columns = position_ids.shape
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    kept = None
    if real is not None:
        starts[:, 1:] |= ~real[:, :-1]
        starts &= real
        kept = None if bool(real.all()) else real.flatten().nonzero().squeeze(1)
    flat_starts = starts.flatten() if kept is None else starts.flatten()[kept]
    total = len(flat_starts)
    begins = flat_starts.nonzero().squeeze(1)
    bounds = torch.cat((begins, begins.new_full((1,), total))).to(torch.int32)
    lengths = tuple(end - begin for begin, end in pairwise(bounds.tolist()))
    flat_positions = position_ids.flatten() if kept is None else position_ids.flatten()[kept]
    lasts = flat_positions[bounds[1:].long() - 1] + 1
    token_lengths = lasts.repeat_interleave(bounds.diff().long(), output_size=total)
    if kept is not None:
        token_lengths = token_lengths.new_zeros(rows * columns).index_copy(0, kept, token_lengths)
    sample_starts = tuple(starts.flatten().nonzero().squeeze(1).tolist())
    segments = Segments(lengths, bounds, kept) if lengths else None
    return Layout(position_ids, token_lengths.view(rows, columns), sample_starts, segments)


def positions_from_bounds(bounds: Tensor, rows: int, columns: int) -> Tensor:
    """Positions (1, columns) of the samples with cumulative lengths `bounds`; 0 for tokens after the last sample."""
    if rows != 1:
        raise ValueError(f"cu_seq_lens_q describes one packed row, but the batch has {rows}")
    bounds = bounds.long()
    index = torch.arange(columns, device=bounds.device)
    begins = bounds[(torch.bucketize(index, bounds, right=True) - 1).clamp_min(0)]
    return torch.where(index < bounds[-1], index - begins, 0)[None]


def segment_attention(
    attend: Callable[..., tuple[Tensor, Any]],
    implementation: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    dropout: float,
    scaling: float,
    weights: list[Tensor] | None = None,
) -> Tensor:
    """Causal attention within each sample of a flattened row.

    `query` (1, heads, t, d), `key` and `value` (1, kv heads, t, d) -> (1, t, heads, d). `attend` is transformers'
    function for `implementation`. With eager attention, the weights of each sample are appended to `weights`. Flash
    attention gets all samples at once with their bounds, as does torch's varlen kernel with sdpa if it can run (CUDA,
    half precision); otherwise there is one call per sample.
    """
    if implementation.startswith("flash_attention"):
        bounds, longest = segments.bounds, segments.longest
        mixed, _ = attend(
            module, query, key, value, None, dropout=dropout, scaling=scaling,
            cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=longest, max_length_k=longest,
        )  # fmt: skip
        return mixed
    varlen = varlen_kernel() if implementation == "sdpa" and dropout == 0.0 and _fits_varlen(query) else None
    if varlen is not None:
        groups = query.shape[1] // key.shape[1]
        flat = [tensor[0].transpose(0, 1) for tensor in (query, repeat_heads(key, groups), repeat_heads(value, groups))]
        return varlen(*flat, segments.bounds, segments.bounds, segments.longest, segments.longest)[None]
    lengths = segments.lengths
    return _one_by_one(attend, implementation, module, query, key, value, lengths, dropout, scaling, weights)


def _one_by_one(
    attend: Callable[..., tuple[Tensor, Any]],
    implementation: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    dropout: float,
    scaling: float,
    weights: list[Tensor] | None,
) -> Tensor:
    """Call `attend` once per sample; a sample of one token gets its own value."""
    pieces = []
    groups = query.shape[1] // key.shape[1]
    runs = list(_runs(lengths, weights is None))
    # One split: the gradient of a slice would fill a tensor as large as the whole row, for each sample.
    parts = zip(
        *(torch.split(tensor, [count for count, _ in runs], dim=2) for tensor in (query, key, value)), strict=True
    )
    for (length, single), (queries, keys, values) in zip(runs, parts, strict=True):
        if single:
            pieces.append(repeat_heads(values, groups).transpose(1, 2))
            continue
        mask = causal_mask(length, query) if implementation == "eager" else None
        mixed, seen = attend(module, queries, keys, values, mask, dropout=dropout, scaling=scaling)
        pieces.append(mixed)
        if weights is not None:
            weights.append(seen)
    return torch.cat(pieces, dim=1)


def _runs(lengths: Sequence[int], join: bool) -> Iterator[tuple[int, bool]]:
    """Tokens of each sample and False; with `join`, those of neighbouring samples of one token, and True."""
    for single, group in groupby(lengths, lambda length: join and length == 1):
        if single:
            yield sum(group), True
        else:
            yield from ((length, False) for length in group if length)


def causal_mask(length: int, like: Tensor) -> Tensor:
    """Additive causal mask (1, 1, length, length)."""
    lowest = torch.full((length, length), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return lowest.triu(1)[None, None]


def repeat_heads(tensor: Tensor, groups: int) -> Tensor:
    """(b, kv heads, t, d) -> (b, kv heads * groups, t, d)."""
    return tensor if groups == 1 else tensor.repeat_interleave(groups, dim=1)


def _fits_varlen(query: Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0


@lru_cache(maxsize=1)
def varlen_kernel() -> Callable[..., Tensor] | None:
    """`torch.nn.attention.varlen.varlen_attn`, causal, or None if torch lacks it; its signature has changed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    kernel: Callable[..., Any] = varlen_attn
    if "is_causal" in inspect.signature(kernel).parameters:
        return partial(kernel, is_causal=True)
    return partial(kernel, window_size=(-1, 0))


def shifted_labels(labels: Tensor, layout: Layout) -> Tensor:
    """Target of each token, (rows, columns): the label of the next token of its sample, else -100.

    Negative labels are ignored, and so is the first label of each sample, which no token predicts.
    """
    starts = torch.tensor(layout.sample_starts, device=labels.device, dtype=torch.long)
    inner = labels.flatten().index_fill(0, starts, -100).view_as(labels)
    shifted = functional.pad(inner[:, 1:], (0, 1), value=-100)
    return shifted.masked_fill(shifted < 0, -100)
