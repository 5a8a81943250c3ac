"""Counts and histograms over the whole directory: what the report draws.

Every histogram is `{value: count}` with values as decimal strings, in rising order.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from phi3v_data.messages import escaped
from phi3v_data.validate.images import ImageTable
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tokens import ImageCounts, row_image_tokens

Ints = npt.NDArray[np.int64]

_MAX_SIZES = 1000
_MAX_BINS = 2000
_MAX_LABELS = 1000


def collect_stats(
    table: RowTable,
    images: ImageTable,
    used: npt.NDArray[np.bool_],
    tokens: Ints,
    per_image: ImageCounts,
    labels: Mapping[str, Counter[str] | None],
    *,
    model: str,
    num_crops: int | None,
    exact_text: bool,
) -> dict[str, Any]:
    """The report's `stats`.

    `model`: the model family whose tokens are counted. `num_crops`: its tile budget; null if it has none. `turns`,
    `images_per_sample`: histograms over samples. `image_sizes`: `{"WxH": count}` over the used images, most frequent
    first. `tokens`, `image_tokens`: histograms over samples with `step`, the width of a value's bin. `splits`: samples,
    turns, images (uses) and tokens of each. `labels`: answers of each split by count; null if there are too many
    different ones to be labels.
    """
    return {
        "model": model,
        "num_crops": num_crops,
        "text_tokens": "exact" if exact_text else "estimated",
        "turns": histogram(table.num_turns)["counts"],
        "images_per_sample": histogram(table.num_uses)["counts"],
        "image_sizes": _sizes(images, used),
        "tokens": histogram(tokens),
        "image_tokens": histogram(row_image_tokens(table, per_image)),
        "splits": _splits(table, tokens),
        "labels": {split: _labels(counts) for split, counts in labels.items()},
    }


def histogram(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Counts by value, in bins of `step` where there are too many values; with minimum, mean, quantiles, maximum."""
    if not len(values):
        return {"counts": {}, "step": 1}
    values = values.astype(np.int64)
    step = 1
    found, counts = np.unique(values, return_counts=True)
    while len(found) > _MAX_BINS:
        step = step * 2 if str(step)[0] != "2" else step * 5 // 2
        found, counts = np.unique(values // step * step, return_counts=True)
    quantiles = np.quantile(values, [0.5, 0.95], method="inverted_cdf")
    return {
        "counts": {str(value): int(count) for value, count in zip(found.tolist(), counts.tolist(), strict=True)},
        "step": step,
        "min": int(values.min()),
        "median": int(quantiles[0]),
        "mean": round(float(values.mean()), 2),
        "p95": int(quantiles[1]),
        "max": int(values.max()),
        "sum": int(values.sum()),
    }


def _sizes(images: ImageTable, used: npt.NDArray[np.bool_]) -> dict[str, int]:
    facts = images.facts[used]
    known = facts[facts["width"] > 0]
    pairs = known["width"].astype(np.int64) << 32 | known["height"].astype(np.int64)
    found, counts = np.unique(pairs, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MAX_SIZES]
    return {f"{int(found[i]) >> 32}x{int(found[i]) & 0xFFFFFFFF}": int(counts[i]) for i in order}


def _splits(table: RowTable, tokens: Ints) -> dict[str, dict[str, int]]:
    result: dict[str, dict[str, int]] = {}
    for split, first, end in table.split_rows():
        entry = result.setdefault(table.splits[split], {"samples": 0, "turns": 0, "images": 0, "tokens": 0})
        entry["samples"] += end - first
        entry["turns"] += int(table.num_turns[first:end].sum())
        entry["images"] += int(table.num_uses[first:end].sum())
        entry["tokens"] += int(tokens[first:end].sum())
    return result


def _labels(counts: Counter[str] | None) -> dict[str, int] | None:
    if counts is None or len(counts) > _MAX_LABELS:
        return None
    return {
        escaped(label[:200]): count for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    }
