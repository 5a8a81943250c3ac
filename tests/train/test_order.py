"""The order of samples: properties that any run relies on."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3v_train.data.order import SampleOrder, permutation, share_out

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple)
weight = st.floats(0.01, 100)


@given(sizes, st.integers(1, 17), st.integers(0, 9), st.integers(0, 3))
def test_an_epoch_takes_every_row_once(sizes, batch_size, seed, epoch):
    order = SampleOrder(sizes, batch_size, seed)
    first = epoch * order.epoch_steps
    batches = [order.batch(step) for step in range(first, first + order.epoch_steps)]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size
    drawn = [ref for batch in batches for ref in batch]
    assert Counter((ref.source, ref.row) for ref in drawn) == Counter(
        (source, row) for source, size in enumerate(sizes) for row in range(size)
    )
    assert {ref.epoch for ref in drawn} == {epoch}


@given(sizes, st.data(), st.integers(1, 9), st.integers(0, 5))
def test_mix_follows_the_weights_and_leaves_no_row_out(sizes, data, batch_size, seed):
    mix = tuple(data.draw(weight) for _ in sizes)
    order = SampleOrder(sizes, batch_size, seed, mix)
    total = sum(order.shares)
    for share, part in zip(order.shares, mix, strict=True):
        wanted = sum(sizes) * part / sum(mix)
        assert share >= 1
        assert share == 1 or share <= wanted + 1
        assert share >= wanted - len(mix)
    drawn = [ref for step in range(3 * order.epoch_steps) for ref in order.batch(step)]
    assert len(drawn) == 3 * total
    for source, size in enumerate(sizes):
        counts = Counter(ref.row for ref in drawn if ref.source == source)
        uses = 3 * order.shares[source]
        assert sum(counts.values()) == uses
        assert max(counts.values()) - min(counts.get(row, 0) for row in range(size)) <= 1


def test_order_is_pinned():
    """A release that drew another order would break the resume of runs begun with an older one."""
    assert permutation(10, "epoch", 0, 0).tolist() == [4, 0, 6, 9, 2, 5, 3, 1, 7, 8]
    order = SampleOrder((5, 3), 4, seed=7, mix=(1, 2))
    assert [(ref.source, ref.row) for ref in order.batch(0)] == [(1, 2), (0, 2), (1, 0), (0, 4)]
    assert order.batch(2)[0].epoch == 1


def test_other_seed_and_other_epoch_are_other_orders():
    orders = {tuple(permutation(50, "epoch", seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    places = [permutation(50, "epoch", seed, 0).tolist().index(0) for seed in range(1000)]
    assert 20 < sum(places) / 1000 < 29  # uniform: 24.5, standard error 0.46


def test_steps_of_fractions_of_epochs():
    order = SampleOrder((70,), 16)
    assert order.epoch_steps == 5
    assert [order.total_steps(epochs) for epochs in (1, 2, 0.1, 0.2, 0.5, 1.3, 2.4)] == [5, 10, 1, 1, 3, 7, 12]
    assert order.total_steps(0.3) == 2


def test_any_step_of_a_million_rows_comes_like_the_first():
    order = SampleOrder((900_000, 100_000), 64, mix=(1.0, 3.0))
    batch = order.batch(10 * order.epoch_steps + 5_000)
    assert len({(ref.source, ref.row) for ref in batch}) == 64
    assert {ref.epoch for ref in batch} == {10}


@pytest.mark.parametrize(
    "bad", [{"sizes": ()}, {"sizes": (0,)}, {"batch_size": 0}, {"mix": (1.0, 2.0)}, {"mix": (0.0,)}]
)
def test_impossible_orders_are_refused(bad):
    with pytest.raises(ValueError, match="needs"):
        SampleOrder(**{"sizes": (3,), "batch_size": 2, **bad})


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (10, [1, 1], (5, 5)),
        (10, [1, 2], (3, 7)),
        (10, [3, 1, 1], (6, 2, 2)),
        (10, [1, 1, 1], (4, 3, 3)),
        (7, [0.5, 0.25, 0.25], (3, 2, 2)),
        (3, [1000, 1, 1], (1, 1, 1)),
        (2, [1, 1, 1], (1, 1, 1)),
    ],
)
def test_quotas_by_hand(total, weights, expected):
    """Largest remainders first, the first source where they are equal, and at least one for each."""
    assert share_out(total, weights) == expected


@given(st.integers(1, 1000), st.lists(weight, min_size=1, max_size=6))
def test_share_out(total, weights):
    shares = share_out(total, weights)
    assert sum(shares) == max(total, len(weights))
    assert min(shares) >= 1
