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
from phi3v_train.models.machine import Chosen, available_memory
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


MEMINFO = "MemTotal:       33554432 kB\nMemAvailable:   16777216 kB\nHugePages_Total:       0\n"
V1, V2 = "sys/fs/cgroup/memory/", "sys/fs/cgroup/"


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 16.0),
        ({f"{V2}memory.max": "max\n", f"{V2}memory.current": "4096\n"}, 16.0),
        (
            {
                f"{V2}memory.max": f"{8 << 30}\n",
                f"{V2}memory.current": f"{3 << 30}\n",
                f"{V2}memory.stat": f"anon 7\ninactive_file {1 << 30}\n",
            },
            6.0,
        ),
        (
            {
                f"{V1}memory.limit_in_bytes": f"{4 << 30}\n",
                f"{V1}memory.usage_in_bytes": f"{5 << 30}\n",
                f"{V1}memory.stat": f"inactive_file 1\ntotal_inactive_file {3 << 30}\n",
            },
            2.0,
        ),
    ],
    ids=["no container", "a container without a limit", "a limit, cgroups v2", "a limit, cgroups v1"],
)
def test_the_memory_of_a_container_counts_if_it_is_less(tmp_path: Path, files: dict[str, str], gib: float) -> None:
    """Of what the container uses, the part of cached files that the kernel gives back is available."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == gib * (1 << 30)


def test_memory_that_the_system_does_not_report_is_0(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == 0


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
