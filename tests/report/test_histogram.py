"""Bars and quantiles."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3v_data.report.histogram import MAX_BARS, make_histogram, nice_step, quantile, top_bars
from phi3v_data.validate.stats import histogram

values = st.dictionaries(st.integers(0, 10**7), st.integers(1, 1000), min_size=1, max_size=40)


@given(values)
def test_no_occurrence_is_lost_and_bars_stay_few(counts: dict[int, int]) -> None:
    histogram = make_histogram("t", "u", counts)
    assert sum(count for _, count in histogram.bars) == sum(counts.values())
    assert 1 <= len(histogram.bars) <= MAX_BARS
    assert histogram.facts["max"] == f"{max(counts):,}"


@given(values, st.sampled_from([0.5, 0.95]))
def test_quantiles_are_those_of_the_sorted_values(counts: dict[int, int], share: float) -> None:
    ordered = sorted(Counter(counts).elements())
    position = next(n for n in range(len(ordered)) if n + 1 >= share * len(ordered))
    assert quantile(counts, share) == ordered[position]


def test_small_ranges_have_a_bar_for_each_value() -> None:
    assert make_histogram("t", "u", {1: 5, 3: 2}).bars == (("1", 5), ("2", 0), ("3", 2))
    assert make_histogram("t", "u", {}).bars == ()


def test_steps_are_round() -> None:
    assert [nice_step(width) for width in (10, 40, 100, 200, 5000)] == [1, 2, 5, 10, 500]
    assert make_histogram("t", "u", {0: 1, 45: 1}).bars[0] == ("0 to 1", 1)


def test_the_rest_goes_into_one_bar() -> None:
    assert top_bars([("a", 1), ("b", 5), ("c", 2), ("d", 2)], 3) == (("b", 5), ("c", 2), ("2 others", 3))


@pytest.mark.parametrize(
    ("many", "step"),
    [(2, 1), (2_000, 1), (3_000, 2), (10_000, 5), (12_000, 10), (30_000, 20), (60_000, 50), (150_000, 100)],
)
def test_bins_are_1_2_or_5_times_a_power_of_10_wide(many: int, step: int) -> None:
    result = histogram(np.arange(many))
    assert result["step"] == step
    assert set(result["counts"].values()) == {step}
    assert (result["min"], result["max"]) == (0, many - 1)
