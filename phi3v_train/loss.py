"""The model as a function from a micro-batch to its share of a step's loss: what engines wrap."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from phi3v_train.data.loader import MicroBatch
from phi3v_train.device import to_device
from phi3v_train.distributed.group import Group
from phi3v_train.precision import Precision


class LossModule(nn.Module):
    """Cross-entropy of a micro-batch, in the run's number format."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        # Buffers are never trained: DistributedDataParallel need not send them round.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def forward(self, inputs: Mapping[str, Tensor], count: float) -> Tensor:
        """Sum of cross-entropy over the supervised tokens, divided by `count`; 0 where there are none."""
        with self.precision.autocast():
            loss: Tensor = self.model(**inputs, num_items_in_batch=count, return_logits=False).loss
        return loss


@torch.no_grad()
def mean_loss(model: nn.Module, micros: Iterable[MicroBatch], *, precision: Precision, group: Group) -> float | None:
    """Loss over all supervised tokens of `micros`, each process bringing its own; None where there is none."""
    was_training = model.training
    model.eval()
    module = LossModule(model, precision)
    total, tokens = 0.0, 0
    for micro in micros:
        total += module(to_device(micro.inputs, group.device), 1.0).item()
        tokens += micro.shape.num_supervised
    model.train(was_training)
    total, count = group.sum([total, float(tokens)])
    return total / count if count else None
