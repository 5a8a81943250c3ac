"""The interface between the training loop and a parallel strategy.

An engine holds the model that is trained, its gradients and its optimizer, sharded or not, and knows how these are
written and read. A new strategy is one class here and one line in `make_engine`. Every method is called by all
processes together, in the same order.

Losses arrive divided by the supervised tokens of the *global* batch, so gradients are summed: over micro-batches and
over processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from phi3v_data.errors import UserError
from phi3v_train.device import with_fp64
from phi3v_train.distributed.group import Group
from phi3v_train.loss import Losses, LossModule, Sources
from phi3v_train.precision import Precision
from phi3v_train.training.methods import TrainedModel


class WrongEngineError(UserError):
    """The model is not held as was asked for; it is never trained in that state."""


class Update(NamedTuple):
    """Result of an update: highest learning rate, norm of all gradients, and whether it was skipped."""

    lr: float
    norm: float
    skipped: bool


class Engine(ABC):
    """A model in training.

    `strategy` is its name in `--parallel`, "single" for one process. The constructor wraps `trained`, which is on the
    device already, creates the optimizer, and calls `check`.
    """

    strategy: ClassVar[str]

    def __init__(self, group: Group, trained: TrainedModel, precision: Precision) -> None:
        self.group = group
        self.trained = trained
        self.precision = precision
        self.loss_module = LossModule(trained.model, precision)

    @abstractmethod
    def check(self) -> None:
        """Verify that the model really is held as `strategy` says.

        Raises:
            WrongEngineError: it is not.
        """

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The module that is called with a micro-batch."""

    @abstractmethod
    def accumulate(
        self, inputs: Mapping[str, Tensor], count: float, *, last: bool, sources: Sources | None = None
    ) -> Losses:
        """Forward and backward pass over one micro-batch; its part of the step's losses.

        `TOTAL` is divided by `count`; the sums by source, if given, are not. Before the step's `last`
        micro-batch, gradients need not be exchanged.
        """

    def reduce(self, losses: Sequence[Losses], extra: Iterable[float] = ()) -> tuple[dict[str, float], list[float]]:
        """The losses of a step, summed over its micro-batches and over all processes.

        Args:
            losses: of this process's micro-batches; all processes have the same keys.
            extra: numbers that are summed over the processes in the same exchange.

        Returns:
            The sums by key, and those of `extra`.
        """
        keys = list(losses[0])
        here = torch.stack([torch.stack([with_fp64(each[key]) for each in losses]).double().sum() for key in keys])
        sums = self.group.sum([*here.tolist(), *extra])
        return dict(zip(keys, sums, strict=False)), sums[len(keys) :]

    @abstractmethod
    def update(self, factor: float, max_norm: float) -> Update:
        """Clip the gradients to `max_norm` (0: never), move the weights, clear the gradients.

        `factor` scales every group's highest learning rate. If the norm is not finite, the weights stay as
        they are and the update is `skipped`; in fp16 that is part of finding the loss scale, see `scales_loss`.
        """

    @property
    def scales_loss(self) -> bool:
        """Whether a skipped update is normal."""
        return self.precision.name == "fp16"

    @abstractmethod
    def write(self, folder: Path, processor: Any) -> None:
        """Write model and optimizer into a checkpoint's folder, which exists; each process its files, or the main one
        all. The processor's files go with them.

        Errors of the disk are left as they come.
        """

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Load what `write` wrote, by any number of processes.

        Raises:
            UserError: it belongs to another model, or to a strategy that this one cannot read.
        """

    @abstractmethod
    def write_model(self, folder: Path, processor: Any, dtype: torch.dtype) -> None:
        """Write the finished model (a model directory in `dtype`, or an adapter) and the processor; the main process
        does, the others help.
        """

    @contextmanager
    def unsharded(self) -> Iterator[Any]:
        """The model such that each process may run it any number of times, without the others; for evaluation."""
        yield self.trained.model
