"""The parallel strategy of a run follows from the memory that its method needs."""

from typing import Any

import pytest

from phi3v_data.errors import UserError
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.parse_config import parse_config
from phi3v_train.training.memory import Memory, Parallel, estimate
from phi3v_train.training.parallel.strategy import ParallelStrategy, choose_strategy

SIZE = PHI3V.size({})
"""The released models."""


def chosen(world_size: int, gigabytes: float, **settings: Any) -> ParallelStrategy:
    config = parse_config(settings)

    def needs(strategy: Parallel) -> Memory:
        return estimate(
            SIZE, config.method, dtype="bf16", tokens=2443, tiles=17, parallel=strategy, world_size=world_size,
            optim=config.optim.optim,
        )  # fmt: skip

    return choose_strategy(config, world_size, round(gigabytes * 1e9), needs)


@pytest.mark.parametrize(
    ("world_size", "gigabytes", "settings", "name", "keep_unsharded_grads"),
    [
        (1, 24, {}, "single", True),
        (8, 80, {"use_lora": True}, "ddp", True),
        (8, 24, {"use_qlora": True}, "ddp", True),
        (8, 80, {}, "ddp", True),
        (8, 40, {}, "fsdp", True),
        (8, 24, {}, "fsdp", False),
        (8, 80, {"parallel": "fsdp"}, "fsdp", True),
        (2, 8, {"use_qlora": True}, "ddp", True),
        (8, 24, {"parallel": "ddp"}, "ddp", True),
        (8, 24, {"optim": "adamw_8bit"}, "ddp", True),
        (8, 24, {"parallel": "zero2"}, "zero2", True),
    ],
)
def test_the_strategy_follows_from_the_memory(
    world_size: int, gigabytes: float, settings: dict[str, Any], name: str, keep_unsharded_grads: bool
) -> None:
    strategy = chosen(world_size, gigabytes, **settings)
    assert (strategy.name.value, strategy.keep_unsharded_grads) == (name, keep_unsharded_grads), strategy
    assert strategy.name.reason


def test_the_reason_names_the_memory() -> None:
    assert chosen(8, 40, optim="paged_adamw_8bit").name.reason == (
        "44.4 GB for a whole copy in each process do not fit, but 8-bit moments cannot be sharded"
    )
    assert chosen(8, 40).name.reason == "69.1 GB for a whole copy in each process do not fit in 40.0 GB"
    assert chosen(8, 40, parallel="fsdp").name.reason == "asked for"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_one_process_shards_nothing(strategy: str) -> None:
    with pytest.raises(UserError, match=f"--parallel {strategy}: there is one process"):
        chosen(1, 80, parallel=strategy)


def test_four_bits_are_not_divided() -> None:
    with pytest.raises(UserError, match="4-bit weights cannot be sharded"):
        chosen(8, 24, parallel="fsdp", use_qlora=True)
