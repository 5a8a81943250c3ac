"""A copy of model and optimizer in every process; gradients are all-reduced (torch's DistributedDataParallel).

It gets no `device_ids`, for which it would copy all inputs to the device, those for the host among them: the loop has
copied what belongs there.
"""

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phi3v_train.training.parallel.engine import WrongEngineError
from phi3v_train.training.parallel.torch_engine import TorchEngine


class DDPEngine(TorchEngine):
    """DistributedDataParallel; it averages over processes, so the loss is multiplied by their number."""

    strategy: ClassVar[str] = "ddp"

    def wrap(self) -> nn.Module:
        return DistributedDataParallel(self.loss_module, gradient_as_bucket_view=True)

    def no_sync(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.module.no_sync()  # type: ignore[operator]  # DDP's
        return context

    def backward_scale(self) -> float:
        return float(self.group.world_size)

    def check(self) -> None:
        if not isinstance(self.module, DistributedDataParallel):
            raise WrongEngineError(f"--parallel ddp: the model is wrapped in {type(self.module).__name__} instead")
        if dist.get_world_size(self.module.process_group) != self.group.world_size:
            raise WrongEngineError("--parallel ddp: not all processes exchange gradients")
