"""Memory arithmetic over several devices, and what processes really hold."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from processes import HERE, finish, start_ranks
from run_dirs import settings_for

from phi3v_train.config import MethodConfig
from phi3v_train.models.machine import Chosen
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.plan import make_plan
from phi3v_train.plan_report import plan_lines
from phi3v_train.settings import resolve
from phi3v_train.training.memory import Memory, Parallel, estimate, fits, loading_bytes

SIZE = PHI3V.size({})


def memory(parallel: Parallel, world_size: int, **method: Any) -> Memory:
    return estimate(
        SIZE, MethodConfig.model_validate(method), dtype="bf16", tokens=2443, tiles=17, parallel=parallel,
        world_size=world_size,
    )  # fmt: skip


def test_one_device_holds_everything_whatever_the_strategy() -> None:
    alone = {parallel: memory(parallel, 1) for parallel in ("ddp", "fsdp", "zero2", "zero3")}
    assert len(set(alone.values())) == 1
    assert memory("ddp", 8) == alone["ddp"]


def test_bytes_of_a_trained_parameter() -> None:
    """16 together, by hand: fsdp shares all; zero2 all but a copy in bf16; zero3 that copy too."""
    trained = memory("ddp", 1).trained
    rest = SIZE.total - trained  # tensors that no loss reaches, held by every process
    for parallel, each in (("fsdp", 16 / 8), ("zero2", 2 + 16 / 8), ("zero3", 18 / 8)):
        assert memory(parallel, 8).state == pytest.approx(trained * each + rest * 2, abs=8)


def test_more_devices_never_need_more_each() -> None:
    for method in ({}, {"freeze_vision_model": True}, {"use_lora": True}, {"freeze_language_model": True}):
        for parallel in ("fsdp", "zero2", "zero3"):
            totals = [memory(parallel, number, **method).total for number in (2, 4, 8, 16, 64)]
            assert totals == sorted(totals, reverse=True), (method, parallel)


def test_frozen_weights_are_shared_by_fsdp_and_zero3_only() -> None:
    lora = {"use_lora": True, "lora_rank": 32}
    base = SIZE.total * 2
    assert memory("zero2", 8, **lora).weights > base
    assert memory("fsdp", 8, **lora).weights < base / 7
    assert memory("zero3", 8, **lora).weights < base / 7


def test_eight_a100_hold_a_full_run_and_eight_v100_too() -> None:
    assert fits(memory("zero2", 8), 80 * 10**9)
    assert fits(memory("fsdp", 8), 32 * 10**9)
    assert not fits(memory("ddp", 8), 32 * 10**9)


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_processes_hold_what_the_arithmetic_says(strategy: Parallel) -> None:
    """Within 1 %: tensors of few rows do not divide evenly."""
    results = finish(start_ranks(2, HERE / "held_bytes.py", strategy))
    assert [code for code, _, _ in results] == [0, 0], results
    printed = [output for _, output, _ in results]
    for text in printed:
        held = json.loads(text.splitlines()[-1])
        for name, (found, estimated) in held.items():
            assert found == pytest.approx(estimated, rel=0.01), name


def test_host_memory_of_loading_is_that_of_the_whole_model_in_each_process(tmp_path: Path) -> None:
    """By hand: 4,134,023,168 trained weights in fp32 and 12,598,272 others in bf16; all in bf16 under adapters."""
    full, lora = (MethodConfig.model_validate(each) for each in ({}, {"use_qlora": True, "lora_rank": 32}))
    assert loading_bytes(SIZE, full, dtype="bf16") == 16_561_289_216
    assert loading_bytes(SIZE, lora, dtype="bf16") == pytest.approx(8.293e9 + 4 * 60e6, rel=0.01)
    settings = settings_for(colour_directory(tmp_path, rows=4), tmp_path / "out", parallel="fsdp", num_processes=2)
    plan = make_plan(resolve(settings), world_size=2)
    model = tiny_model()
    each = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())) * 4 / 1e9
    needed = f"about {each:,.2f} GB, {2 * each:,.2f} GB for 2 processes of a machine"
    assert needed in dict(plan_lines(plan, run_state="begins"))["host"]
    limits = {
        "zero2": "zero2 keeps a whole copy of what computes in each",
        "zero3": "zero3 shards a model that is loaded",
        "ddp": "ddp keeps a whole copy in each",
    }
    for name, limit in limits.items():
        other = replace(plan, row_source=None, strategy=replace(plan.strategy, name=Chosen(name, "asked for")))
        assert dict(plan_lines(other, run_state="begins"))["host"] == (
            f"each process loads the whole model into the machine's memory first ({limit}): {needed}"
        )
