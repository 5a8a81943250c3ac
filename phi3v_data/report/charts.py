"""The charts of the page, from the validator's statistics (`Report.stats`) and the pass over the rows."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from phi3v_data.report.gallery import Collected
from phi3v_data.report.histogram import Histogram, make_histogram, top_bars
from phi3v_data.schema import Report

MAX_SIZES = 24
"""With more sizes of images than this, the chart shows their longer side."""

MAX_LABEL_BARS = 120


def make_charts(report: Report, found: Collected) -> list[dict[str, Any]]:
    """Charts of tokens, images and turns per sample, image sizes, splits and labels; without data they are left out."""
    stats = report.stats
    crops = stats.get("num_crops")
    exact = "exact" if crops is None else f"exact at num_crops {crops}"
    text = f"text {stats.get('text_tokens', 'estimated')}, images {exact}"
    charts = [
        _chart(_binned("Tokens", "tokens per sample", stats.get("tokens"), text)),
        _chart(_binned("Image tokens", "tokens per sample", stats.get("image_tokens"), exact)),
        _chart(make_histogram("Images", "images per sample", _numbers(stats.get("images_per_sample")) or found.images)),
        _chart(make_histogram("Turns", "turns per sample", _numbers(stats.get("turns")) or found.turns)),
        _sizes(stats.get("image_sizes")),
        _chart(Histogram("Splits", "rows", tuple(report.summary.splits.items())), "rows"),
        _labels(found),
    ]
    return [chart for chart in charts if chart["bars"]]


def _chart(histogram: Histogram, kind: str = "bars") -> dict[str, Any]:
    return {
        "title": histogram.title,
        "unit": histogram.unit,
        "kind": kind,
        "bars": histogram.bars,
        "note": histogram.note,
        "facts": list(histogram.facts.items()),
    }


def _numbers(counts: object) -> dict[int, int]:
    """A histogram of the statistics, `{"value": count}`, with whole numbers for values."""
    return {int(value): count for value, count in counts.items()} if isinstance(counts, Mapping) else {}


def _binned(title: str, unit: str, value: object, note: str) -> Histogram:
    """A histogram whose statistics were taken from the values themselves, before binning."""
    if not isinstance(value, Mapping) or not any(map(int, value.get("counts", {}))):
        return Histogram(title, unit)
    histogram = make_histogram(title, unit, _numbers(value["counts"]), note)
    names = {"min": "min", "median": "median", "mean": "mean", "p95": "95 %", "max": "max", "sum": "total"}
    return replace(histogram, facts={word: f"{value[key]:,}" for key, word in names.items() if key in value})


def _sizes(sizes: object) -> dict[str, Any]:
    if not isinstance(sizes, Mapping):
        return _chart(Histogram("Image sizes", "images"))
    if len(sizes) <= MAX_SIZES:
        bars = tuple((size.replace("x", " x "), count) for size, count in sizes.items())
        return _chart(Histogram("Image sizes", "images", bars, "width x height, as stored"), "rows")
    sides: Counter[int] = Counter()
    for size, count in sizes.items():
        sides[max(map(int, size.split("x")))] += count
    return _chart(make_histogram("Image sizes", "pixels, longer side", sides, f"{len(sizes):,} different sizes"))


def _labels(found: Collected) -> dict[str, Any]:
    labels: Counter[str] = Counter()
    for counts in found.labels.values():
        labels.update(counts)
    if not labels or list(labels) == [""]:
        return _chart(Histogram("Labels", "rows"))
    note = f"{len(labels):,} different last answers"
    return _chart(Histogram("Labels", "rows", top_bars(labels.items(), MAX_LABEL_BARS), note), "rows")
