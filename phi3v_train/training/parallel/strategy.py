"""The parallel strategy of a run, and why it was chosen; decided by the plan, before anything is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from phi3v_data.errors import UserError
from phi3v_train.config import RunConfig
from phi3v_train.models.machine import Chosen
from phi3v_train.training.memory import GB, Memory, Parallel, fits

SINGLE = "single"


@dataclass(frozen=True, slots=True)
class ParallelStrategy:
    """How the processes of a run hold the model.

    `memory` is that of the device that needs most, `available` what one has; `keep_unsharded_grads`: there is memory
    for unsharded gradients between the micro-batches of a step, which saves exchanges.
    """

    name: Chosen
    memory: Memory
    available: int
    keep_unsharded_grads: bool = True


def choose_strategy(
    config: RunConfig, world_size: int, available: int, estimate: Callable[[Parallel], Memory]
) -> ParallelStrategy:
    """The strategy that `--parallel` means here.

    Args:
        config: the run's settings.
        world_size: processes of the run.
        available: bytes of one device; 0 where unknown.
        estimate: memory that a device needs under a strategy.

    Raises:
        UserError: a strategy for several processes was asked for, and there is one; or the method cannot use it.
    """
    asked = config.parallel.parallel
    if world_size == 1:
        if asked == "auto":
            return ParallelStrategy(Chosen(SINGLE, "one process"), estimate("ddp"), available)
        raise UserError(
            f"--parallel {asked}: there is one process to share the work; give --num_processes N (or start N with "
            "torchrun), or leave out --parallel"
        )
    if config.method.use_qlora and asked == "fsdp":
        raise UserError("--parallel fsdp: 4-bit weights cannot be sharded; use --parallel ddp with --use_qlora")
    if asked == "ddp":
        return ParallelStrategy(Chosen("ddp", "asked for"), estimate("ddp"), available)
    if asked == "auto":
        whole = estimate("ddp")
        needs = f"{whole.total / GB:,.1f} GB for a whole copy in each process"
        if not available or fits(whole, available):
            return ParallelStrategy(Chosen("ddp", f"{needs} fit"), whole, available)
        unsharded = "4-bit weights" if config.method.use_qlora else "8-bit moments" if config.optim.is_8bit else None
        if unsharded:
            reason = f"{needs} do not fit, but {unsharded} cannot be sharded"
            return ParallelStrategy(Chosen("ddp", reason), whole, available)
        return shard_weights(f"{needs} do not fit in {available / GB:,.1f} GB", estimate("fsdp"), available, world_size)
    if asked == "fsdp":
        return shard_weights("asked for", estimate("fsdp"), available, world_size)
    return ParallelStrategy(Chosen(asked, "asked for"), estimate(asked), available)


def shard_weights(reason: str, memory: Memory, available: int, world_size: int) -> ParallelStrategy:
    """FSDP, with unsharded gradients between micro-batches if these fit too."""
    more = memory.trained * 4 - memory.gradients if world_size > 1 else 0
    roomy = replace(memory, gradients=memory.gradients + more)
    if not available or fits(roomy, available):
        return ParallelStrategy(Chosen("fsdp", reason), roomy, available)
    return ParallelStrategy(Chosen("fsdp", reason), memory, available, keep_unsharded_grads=False)
