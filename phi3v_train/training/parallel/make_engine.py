"""The engine of each parallel strategy."""

from collections.abc import Mapping
from typing import Any

from phi3v_data.errors import UserError
from phi3v_train.config import RunConfig
from phi3v_train.distributed.group import Group
from phi3v_train.precision import Precision
from phi3v_train.training.methods import TrainedModel
from phi3v_train.training.parallel.engine import Engine
from phi3v_train.training.parallel.row_source import RowSource
from phi3v_train.training.parallel.strategy import SINGLE


def make_engine(
    strategy: str,
    group: Group,
    trained: TrainedModel,
    precision: Precision,
    config: RunConfig,
    *,
    deepspeed: Mapping[str, Any] | None = None,
    keep_unsharded_grads: bool = True,
    rows: RowSource | None = None,
) -> Engine:
    """The engine of a parallel strategy.

    Args:
        strategy: as the plan chose it.
        group: the processes.
        trained: the model, on the device that `first_device` returns.
        precision: the number format.
        config: the run's settings.
        deepspeed: the resolved DeepSpeed configuration of `zero2` and `zero3`.
        keep_unsharded_grads: there is memory for unsharded gradients between the micro-batches of a step.
        rows: where FSDP finds the weights of a model whose parameters are on the device `meta`.

    Raises:
        UserError: it cannot hold this model, or something else than was asked for is running.
    """
    if strategy == SINGLE:
        from phi3v_train.training.parallel.single import SingleEngine

        return SingleEngine(group, trained, precision, config.optim)
    if strategy == "ddp":
        from phi3v_train.training.parallel.ddp import DDPEngine

        return DDPEngine(group, trained, precision, config.optim)
    if strategy == "fsdp":
        from phi3v_train.training.parallel.fsdp import FSDPEngine

        return FSDPEngine(group, trained, precision, config.optim, keep_unsharded_grads=keep_unsharded_grads, rows=rows)
    if strategy in ("zero2", "zero3") and deepspeed is not None:
        from phi3v_train.training.parallel.zero import Zero2Engine, Zero3Engine

        zero = Zero2Engine if strategy == "zero2" else Zero3Engine
        return zero(group, trained, precision, config.optim, deepspeed)
    raise UserError(f"--parallel {strategy} is not available in this version")


def first_device(strategy: str, device: str) -> str:
    """Device of a model before its engine shards it: with FSDP it never is on a GPU as a whole."""
    return "cpu" if strategy == "fsdp" else device
