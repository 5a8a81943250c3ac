"""Histograms of integers: one bar per value while there are few, else bins of 1, 2 or 5 times a power of ten."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_BARS = 24


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram to draw: `bars` are (label, count); `note` says where the values come from, such as an estimate."""

    title: str
    unit: str
    bars: tuple[tuple[str, int], ...] = ()
    note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


def make_histogram(title: str, unit: str, counts: Mapping[int, int], note: str = "") -> Histogram:
    """The histogram of integers, given the count of each."""
    present = {value: count for value, count in counts.items() if count}
    if not present:
        return Histogram(title, unit, (), note)
    low, high = min(present), max(present)
    if high - low < MAX_BARS:
        bars = tuple((f"{value:,}", present.get(value, 0)) for value in range(low, high + 1))
    else:
        step = nice_step(high - low)
        first = low // step
        totals = [0] * (high // step - first + 1)
        for value, count in present.items():
            totals[value // step - first] += count
        bars = tuple(
            (f"{(first + n) * step:,} to {(first + n + 1) * step - 1:,}", count) for n, count in enumerate(totals)
        )
    total = sum(present.values())
    mean = sum(value * count for value, count in present.items()) / total
    facts = {
        "min": f"{low:,}",
        "median": f"{quantile(present, 0.5):,}",
        "mean": f"{mean:,.1f}",
        "95 %": f"{quantile(present, 0.95):,}",
        "max": f"{high:,}",
    }
    return Histogram(title, unit, bars, note, facts)


def nice_step(width: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that covers `width` with at most `MAX_BARS` - 1 whole steps."""
    step, power = 1, 1
    while width // step >= MAX_BARS - 1:
        if step == power * 5:
            power *= 10
            step = power
        else:
            step = power * (2 if step == power else 5)
    return step


def quantile(counts: Mapping[int, int], share: float) -> int:
    """The smallest value such that `share` of the occurrences are at most that value."""
    wanted = share * sum(counts.values())
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return max(counts)


def top_bars(counts: Iterable[tuple[str, int]], limit: int = MAX_BARS) -> tuple[tuple[str, int], ...]:
    """The most frequent labels, largest first, the rest in one bar."""
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    if len(ordered) <= limit:
        return tuple(ordered)
    rest = sum(count for _, count in ordered[limit - 1 :])
    return (*ordered[: limit - 1], (f"{len(ordered) - limit + 1:,} others", rest))
