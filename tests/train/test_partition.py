"""The division of a step among processes: properties that any run relies on."""

from itertools import pairwise

import pytest
from colour_sets import colour_directory
from hypothesis import given
from hypothesis import strategies as st
from run_dirs import settings_for

from phi3v_data.errors import UserError
from phi3v_data.tokens.phi3v_geometry import crop_geometry
from phi3v_train.build import make_loader
from phi3v_train.config import MethodConfig
from phi3v_train.data.order import permutation
from phi3v_train.data.partition import Cost, Rates, accumulation_steps, partition
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.plan import make_plan
from phi3v_train.settings import resolve
from phi3v_train.training.work import work_rates

costs = st.lists(st.builds(Cost, st.integers(1, 9000), st.integers(0, 40)), min_size=1, max_size=40)
rates = st.builds(Rates, st.integers(1, 50_000), st.integers(0, 5), st.integers(0, 2_000_000))


def works(costs, shares, pack, rates):
    """Work of every micro-batch of every process."""
    return [[rates.micro_batch([costs[i] for i in batch], pack=pack) for batch in share] for share in shares]


def waiting(works, *, lockstep):
    """Share of the processes' time that they wait for each other."""
    spent = sum(map(max, zip(*works, strict=True))) if lockstep else max(map(sum, works))
    return 1 - sum(map(sum, works)) / (spent * len(works))


@given(costs, st.integers(1, 5), st.integers(1, 6), st.booleans(), st.booleans(), rates)
def test_partition_takes_every_sample_once_and_balances(costs, size, world_size, pack, lockstep, rates):
    options = {
        "micro_batch_size": size,
        "world_size": world_size,
        "pack": pack,
        "lockstep": lockstep,
        "rates": rates,
    }
    shares = partition(costs, **options)
    assert len(shares) == world_size
    assert len({len(share) for share in shares}) == 1
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(len(costs)))
    if not pack:
        assert all(len(batch) <= size for share in shares for batch in share)
    found = works(costs, shares, pack, rates)
    loads = [sum(share) for share in found]
    assert max(loads) - min(loads) <= max(map(max, found))
    assert all(share == sorted(share, reverse=True) for share in found)
    if lockstep:
        groups = list(zip(*found, strict=True))
        assert all(min(one) >= max(other) for one, other in pairwise(groups))
    assert shares == partition(list(costs), **options)


@given(costs, st.integers(1, 5), st.integers(2, 6), st.booleans())
def test_meeting_once_a_step_never_waits_longer_than_in_lockstep_order(costs, size, world_size, pack):
    options = {"micro_batch_size": size, "world_size": world_size, "pack": pack}
    loads = [
        max(map(sum, works(costs, partition(costs, **options, lockstep=lockstep), pack, Rates())))
        for lockstep in (False, True)
    ]
    assert loads[0] <= loads[1]


@given(costs, st.integers(1, 5), st.integers(1, 8), st.booleans(), st.booleans(), rates)
def test_every_step_has_the_same_micro_batches_for_any_number_of_processes(
    costs, size, world_size, pack, lockstep, rates
):
    """The short step at the end of an epoch as well: dropout is drawn for a micro-batch."""
    one = partition(costs, micro_batch_size=size, pack=pack, rates=rates)
    many = partition(costs, micro_batch_size=size, world_size=world_size, pack=pack, lockstep=lockstep, rates=rates)
    assert {batch for share in many for batch in share if batch} == set(one[0])


PAGES = ((1700, 2200), (1654, 2339), (1700, 2800), (2200, 1700), (900, 2400), (1700, 700), (800, 300))


def pages(seed, number):
    """Costs like DocVQA's at 16 crops; every tenth sample is text alone, every tenth has two pages."""
    shapes = permutation(number, "shape", seed).tolist()
    found = []
    for index, draw in enumerate(permutation(number, "kind", seed).tolist()):
        count = {0: 0, 1: 2}.get(draw % 10, 1)
        geometries = [crop_geometry(*PAGES[(shapes[index] + k) % len(PAGES)], 16) for k in range(count)]
        tokens = 30 + draw % 30 + sum(geometry.num_tokens for geometry in geometries)
        found.append(Cost(tokens, sum(geometry.num_tiles for geometry in geometries)))
    return found


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 16), (4, 32), (8, 64)])
def test_processes_wait_little_for_each_other(world_size, batch_size):
    """Less than a hundredth where they meet once a step; in lockstep less than half of what they wait unbalanced."""

    def mean_waiting(lockstep, balanced):
        found = []
        for seed in range(30):
            costs = pages(seed, batch_size)
            shares = [[(index,) for index in range(rank, batch_size, world_size)] for rank in range(world_size)]
            if balanced:
                shares = partition(costs, micro_batch_size=1, world_size=world_size, lockstep=lockstep)
            found.append(waiting(works(costs, shares, False, Rates()), lockstep=lockstep))
        return sum(found) / len(found)

    assert mean_waiting(lockstep=False, balanced=True) < 0.01
    assert mean_waiting(lockstep=False, balanced=False) > 0.06
    assert mean_waiting(lockstep=True, balanced=True) < mean_waiting(lockstep=True, balanced=False) / 2


def test_padding_is_cut_by_length_and_packing_evens_out():
    costs = [Cost(tokens) for tokens in (10, 1000, 20, 990, 500, 510)]
    assert partition(costs, micro_batch_size=2) == (((1, 3), (5, 4), (2, 0)),)
    packed = partition(costs, micro_batch_size=2, pack=True, rates=Rates(pair=0))[0]
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


@pytest.mark.parametrize(("strategy", "lockstep"), [("ddp", False), ("fsdp", True)])
def test_a_run_divides_by_its_own_work_and_by_where_its_processes_meet(tmp_path, strategy, lockstep):
    data_dir = colour_directory(tmp_path, rows=4)
    plan = make_plan(
        resolve(settings_for(data_dir, tmp_path / "out", parallel=strategy, num_processes=2)), world_size=2
    )
    with make_loader(plan, 0, 2, pin_memory=False) as loader:
        assert loader.lockstep is lockstep
        assert loader.rates == work_rates(plan.size, MethodConfig(), checkpointing=False)
        assert loader.rates != Rates()


# Rates


def test_rates_of_the_released_model():
    """Forward at 2,443 tokens and 17 tiles: decoder 17.7, attention 1.2, tower without its last layer 6.3 TFLOP.

    Training everything is 4 times that with checkpointing, 3 times without.
    """
    size = PHI3V.size({})
    for checkpointing, passes in ((True, 4), (False, 3)):
        found = work_rates(size, MethodConfig(), checkpointing=checkpointing)
        assert found.token * 2443 / passes == pytest.approx(17.7e12, rel=0.01)
        assert found.pair * 2443**2 / passes == pytest.approx(1.2e12, rel=0.03)
        assert found.tile * 17 / passes == pytest.approx(6.33e12, rel=0.01)
    default = Rates()
    assert default.tile / default.token == pytest.approx(found.tile / found.token, rel=0.05)
    assert default.pair / default.token == pytest.approx(found.pair / found.token, rel=0.05)


def test_rates_follow_what_is_trained():
    size = PHI3V.size({})

    def tile_in_tokens(**method):
        found = work_rates(size, MethodConfig.model_validate(method), checkpointing=True)
        return round(found.tile / found.token)

    full = tile_in_tokens()
    assert tile_in_tokens(freeze_vision_model=True) == pytest.approx(full / 4, abs=1)
    assert tile_in_tokens(use_lora=True) == full
    assert tile_in_tokens(use_lora=True, freeze_vision_model=True) == pytest.approx(full / 3, abs=1)
    assert tile_in_tokens(freeze_language_model=True) == pytest.approx(full * 4 / 3, abs=1)
