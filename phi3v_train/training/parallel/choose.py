"""Which kind of sharing a run gets."""

from phi3v_data.errors import UserError
from phi3v_train.config import RunConfig
from phi3v_train.training.methods import TrainedModel
from phi3v_train.training.parallel.engine import Engine
from phi3v_train.training.parallel.group import Group
from phi3v_train.training.precision import Precision


def check_parallel(parallel: str) -> None:
    """Refuse a kind of sharing that this version does not have; never another one in its place.

    Raises:
        UserError: which, and what there is.
    """
    if parallel not in ("auto", "ddp"):
        raise UserError(f"--parallel {parallel} is not available in this version: use --parallel ddp")


def make_engine(kind: str, group: Group, trained: TrainedModel, precision: Precision, config: RunConfig) -> Engine:
    """The engine of a kind.

    Raises:
        UserError: it cannot hold this model, or something else than was asked for is running.
    """
    if group.place.world_size == 1:
        from phi3v_train.training.parallel.single import SingleEngine

        return SingleEngine(group, trained, precision, config.optim)
    check_parallel(kind)
    from phi3v_train.training.parallel.ddp import DDPEngine

    return DDPEngine(group, trained, precision, config.optim)
