"""The model as a function from a micro-batch to its part of a step's loss: what engines wrap."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from phi3v_train.data.loader import MicroBatch
from phi3v_train.data.sources import TOTAL
from phi3v_train.device import copied, to_device, with_fp64
from phi3v_train.distributed.group import Group
from phi3v_train.models.registry import family_of_model
from phi3v_train.precision import Precision

Losses: TypeAlias = dict[str, Tensor]
"""Sums of losses by key, without a gradient: `TOTAL`, and each data source by its name if there are several."""


class Sources(NamedTuple):
    """The data sources of a run, and which of them each supervised token of a micro-batch comes from.

    `of_tokens` (supervised tokens,) are indices into `names`, in the order of rows and columns.
    """

    names: tuple[str, ...]
    of_tokens: Tensor

    @classmethod
    def of(cls, micro: MicroBatch, names: tuple[str, ...], device: torch.device) -> "Sources":
        """Those of a micro-batch, padded or packed: its samples follow one another in both."""
        return cls(names, copied(micro.token_sources, device))


class LossModule(nn.Module):
    """Cross-entropy of a micro-batch, in the run's number format."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.family = family_of_model(model)
        # Buffers are never trained: DistributedDataParallel need not broadcast them.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def forward(
        self, inputs: Mapping[str, Any], count: float, of_tokens: Tensor | None = None, num_sources: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the sums of cross-entropy by source.

        Args:
            inputs: the model's keyword arguments.
            count: what the sum of cross-entropy over the supervised tokens is divided by.
            of_tokens: source of each supervised token; None: not asked for.
            num_sources: number of sources.

        Returns:
            The loss (scalar, 0 if no token is supervised), and the sums (num_sources,) in fp64, not divided and
            without a gradient.
        """
        with self.precision.autocast():
            loss, tokens = self.family.loss(self.model, inputs, count, per_token=of_tokens is not None)
        sums = torch.zeros(num_sources, dtype=torch.float64, device=with_fp64(loss).device)
        if of_tokens is not None and tokens is not None:
            sums.index_add_(0, with_fp64(of_tokens), with_fp64(tokens).double())
        return loss, sums


def source_arguments(sources: Sources | None) -> tuple[Tensor, int] | tuple[()]:
    """Further positional arguments of a `LossModule`: plain ones, which every wrapper of modules takes."""
    return () if sources is None else (sources.of_tokens, len(sources.names))


def losses_by_key(loss: Tensor, sums: Tensor, sources: Sources | None) -> Losses:
    """The results of a `LossModule` under their keys."""
    names = sources.names if sources is not None else ()
    return {TOTAL: loss.detach(), **dict(zip(names, sums, strict=True))}


@torch.no_grad()
def mean_loss(model: nn.Module, micros: Iterable[MicroBatch], *, precision: Precision, group: Group) -> float | None:
    """Loss over all supervised tokens of `micros`, each process passing its own; None if there are none."""
    was_training = model.training
    model.eval()
    module = LossModule(model, precision)
    total, tokens = 0.0, 0
    for micro in micros:
        loss, _ = module(to_device(micro.inputs, group.device), 1.0)
        total += loss.item()
        tokens += micro.shape.num_supervised
    model.train(was_training)
    total, count = group.sum([total, float(tokens)])
    return total / count if count else None
