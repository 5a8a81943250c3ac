"""The order of samples and the division of a step: properties that any run relies on."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3v_data.errors import UserError
from phi3v_train.data.order import SampleOrder, permutation, share_out
from phi3v_train.data.partition import Cost, accumulation_steps, partition

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
    assert order.epoch_of(5) == 1.0
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


@given(st.integers(1, 1000), st.lists(weight, min_size=1, max_size=6))
def test_share_out(total, weights):
    shares = share_out(total, weights)
    assert sum(shares) == max(total, len(weights))
    assert min(shares) >= 1


# Partition

costs = st.lists(st.builds(Cost, st.integers(1, 9000), st.integers(0, 40)), min_size=1, max_size=40)


@given(costs, st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_partition_takes_every_sample_once_and_balances(costs, micro_batch_size, world_size, pack):
    shares = partition(costs, micro_batch_size=micro_batch_size, world_size=world_size, pack=pack)
    assert len(shares) == world_size
    assert len({len(share) for share in shares}) == 1
    taken = sorted(index for share in shares for batch in share for index in batch)
    assert taken == list(range(len(costs)))
    if not pack:
        assert all(len(batch) <= micro_batch_size for share in shares for batch in share)

    def work(batch):
        tokens = [costs[index].tokens for index in batch]
        tiles = sum(costs[index].tiles for index in batch)
        return (sum(tokens) if pack else max(tokens, default=0) * len(tokens)) + 50 * tiles

    works = [[work(batch) for batch in share] for share in shares]
    loads = [sum(share) for share in works]
    assert max(loads) - min(loads) <= max(map(max, works))
    assert all(share == sorted(share, reverse=True) for share in works)
    assert shares == partition(list(costs), micro_batch_size=micro_batch_size, world_size=world_size, pack=pack)


@given(st.integers(0, 3), st.booleans(), st.data())
def test_full_steps_have_the_same_micro_batches_for_any_number_of_processes(power, pack, data):
    costs = data.draw(st.lists(st.builds(Cost, st.integers(1, 900)), min_size=16, max_size=16))
    one = partition(costs, micro_batch_size=2, world_size=1, pack=pack)
    many = partition(costs, micro_batch_size=2, world_size=2**power, pack=pack)
    assert {batch for share in one for batch in share} == {batch for share in many for batch in share}


def test_padding_is_cut_by_length_and_packing_evens_out():
    costs = [Cost(tokens) for tokens in (10, 1000, 20, 990, 500, 510)]
    assert partition(costs, micro_batch_size=2) == (((1, 3), (5, 4), (2, 0)),)
    packed = partition(costs, micro_batch_size=2, pack=True)[0]
    assert sorted(sum(costs[index].tokens for index in batch) for batch in packed) == [1010, 1010, 1010]


def test_a_short_step_leaves_empty_micro_batches():
    shares = partition([Cost(5), Cost(6)], micro_batch_size=1, world_size=4)
    assert shares == (((1,),), ((0,),), ((),), ((),))


def test_batches_that_do_not_divide_are_refused():
    assert accumulation_steps(64, 2, 8) == 4
    with pytest.raises(UserError, match=r"--batch_size 20 does not divide .* use --batch_size 16 or 32"):
        accumulation_steps(20, 2, 8)
    with pytest.raises(UserError, match=r"use --batch_size 8$"):
        accumulation_steps(4, 1, 8)
