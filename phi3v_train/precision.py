"""The number format of a run: trained weights in fp32, frozen ones and the arithmetic in the compute dtype."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Precision:
    """The compute dtype by its short name, on one device type."""

    name: str
    device_type: str
    cache_casts: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        return DTYPES[self.name]

    def autocast(self) -> AbstractContextManager[Any]:
        """Around every forward pass.

        Casts of trained weights are not cached under gradient checkpointing: the cache would hold a second copy of all
        weights through the whole forward pass.
        """
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype, cache_enabled=self.cache_casts)

    def make_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which fp16 needs; for the others it does nothing."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def set_weight_dtypes(model: nn.Module, precision: Precision) -> None:
    """Trainable parameters to fp32, frozen floating ones to the compute dtype; what is packed in 4 bits stays.

    The text embedding, where it is trained, still hands on the compute dtype, so that the residual stream keeps it.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif parameter.is_floating_point():
            parameter.data = parameter.data.to(precision.dtype)
    if precision.name != "fp32":
        embedding = model.get_input_embeddings()  # type: ignore[operator]  # transformers' models have it
        embedding.register_forward_hook(lambda module, args, output: output.to(precision.dtype))
