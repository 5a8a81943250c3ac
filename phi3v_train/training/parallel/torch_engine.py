"""Base of the strategies on torch's own optimizer; complete for unsharded copies of the model."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phi3v_data.errors import UserError
from phi3v_train.config import OptimConfig
from phi3v_train.distributed.group import Group
from phi3v_train.loss import Losses, Sources, losses_by_key, source_arguments
from phi3v_train.models.directory import is_sharded
from phi3v_train.precision import Precision
from phi3v_train.training.eight_bit import restore_8bit
from phi3v_train.training.methods import TrainedModel
from phi3v_train.training.optimizer import make_optimizer, set_rates
from phi3v_train.training.parallel.engine import Engine, Update
from phi3v_train.training.parallel.shards import Shards, local_part, rows_here
from phi3v_train.training.parallel.zero_parts import has_parts, unsharded_moments
from phi3v_train.training.saving import own_state, read_model, read_optimizer, write_model, write_optimizer

OPTIMIZER = "optimizer.pt"


class TorchEngine(Engine):
    """AdamW over the parameters as the wrapped module has them."""

    def __init__(self, group: Group, trained: TrainedModel, precision: Precision, optim: OptimConfig) -> None:
        super().__init__(group, trained, precision)
        self._module = self.wrap()
        self.names = [name for name, _ in trained.trainable()]
        self.parameters = [parameter for _, parameter in trained.trainable()]
        self.optimizer = make_optimizer(trained.trainable(), optim, trained.family)
        self.is_8bit = optim.is_8bit
        self.scaler = precision.make_scaler()
        self.check()

    def wrap(self) -> nn.Module:
        """Make the loss module part of the run."""
        return self.loss_module

    @property
    def module(self) -> nn.Module:
        return self._module

    def no_sync(self) -> AbstractContextManager[Any]:
        """Around every micro-batch of a step but the last: gradients are not exchanged."""
        return nullcontext()

    def backward_scale(self) -> float:
        """Factor on the loss that makes the exchanged gradients a sum over processes."""
        return 1.0

    def accumulate(
        self, inputs: Mapping[str, Tensor], count: float, *, last: bool, sources: Sources | None = None
    ) -> Losses:
        with nullcontext() if last else self.no_sync():
            loss, sums = self.module(inputs, count, *source_arguments(sources))
            scaled: Tensor = self.scaler.scale(loss * self.backward_scale())
            torch.autograd.backward(scaled)
        return losses_by_key(loss, sums, sources)

    def update(self, factor: float, max_norm: float) -> Update:
        lr = set_rates(self.optimizer, factor)
        self.scaler.unscale_(self.optimizer)
        norm = self.clip(max_norm)
        finite = math.isfinite(norm)
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(lr, norm, skipped=not finite)

    def clip(self, max_norm: float) -> float:
        """Norm of all gradients, which are scaled down to `max_norm` where it is greater than 0."""
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, max_norm if max_norm > 0 else math.inf))

    def write(self, folder: Path, processor: Any) -> None:
        if self.group.is_main:
            write_model(self.trained, processor, folder)
            write_optimizer(self.optimizer_state(), folder / OPTIMIZER)

    def read(self, folder: Path) -> None:
        if is_sharded(folder):
            self.read_shards(Shards(folder))
            return
        if has_parts(folder):
            self.read_weights(folder)
            self.load_optimizer_state({"moments": unsharded_moments(folder, self.trained.trainable()), "scaler": {}})
            return
        if not (folder / OPTIMIZER).is_file():
            raise UserError(
                f"{folder}: was written by another --parallel (state.json names it), which --parallel "
                f"{self.strategy} cannot resume from; give the same one"
            )
        self.read_weights(folder)
        self.load_optimizer_state(read_optimizer(folder / OPTIMIZER))

    def read_weights(self, folder: Path) -> None:
        """Load the weights of a folder that contains them unsharded."""
        read_model(self.trained, folder)

    @torch.no_grad()
    def read_shards(self, shards: Shards) -> None:
        """Load what was written sharded: of every tensor the rows that this process holds."""
        held = own_state(self.trained.model)
        names = shards.names()
        unknown = sorted(held.keys() ^ set(names))
        unfit = unknown or [name for name in names if shards.total(f"model/{name}") != len(held[name])]
        if unfit or self.trained.peft_model is not None:
            name = unfit[0] if unfit else "it contains no adapter"
            raise UserError(f"{shards.folder}: is not a checkpoint of this model ({name})")
        for name in names:
            local_part(held[name]).copy_(shards.rows(f"model/{name}", *rows_here(held[name])))
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            moments = set(shards.names(kind))
            for name, parameter in zip(self.names, self.parameters, strict=True):
                if name in moments:
                    rows = shards.rows(f"{kind}/{name}", *rows_here(parameter))
                    self.optimizer.state[parameter][kind] = self._placed(kind, rows, parameter)
        if state := shards.scaler():
            self.scaler.load_state_dict(state)

    def _placed(self, kind: str, rows: Tensor, parameter: nn.Parameter) -> Tensor:
        """A part of the optimizer's state where AdamW wants it; `rows` are this process's."""
        if kind == "step":
            return rows.to(parameter.device) if self.is_fused else rows.clone()
        placed = torch.zeros_like(parameter)
        local_part(placed).copy_(rows)
        return placed

    def write_model(self, folder: Path, processor: Any, dtype: torch.dtype) -> None:
        if self.group.is_main:
            write_model(self.trained, processor, folder, dtype=dtype)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state by parameter name, on the CPU, and the loss scale."""
        held = self.optimizer.state
        moments = {
            name: {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in state.items()}
            for name, parameter in zip(self.names, self.parameters, strict=True)
            if (state := held.get(parameter))
        }
        return {"moments": moments, "scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Load what `optimizer_state` gave."""
        moments = state["moments"]
        named = zip(self.names, self.parameters, strict=True)
        saved = {parameter: moments[name] for name, parameter in named if name in moments}
        if self.is_8bit:
            restore_8bit(self.optimizer, saved)
        else:
            for parameter, values in saved.items():
                start, stop = rows_here(parameter)
                for key, value in values.items():
                    rows = value if key == "step" else value[start:stop]
                    self.optimizer.state[parameter][key] = self._placed(key, rows, parameter)
        if state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))

    @property
    def is_fused(self) -> bool:
        """Whether AdamW counts its steps on the device."""
        return bool(self.optimizer.defaults.get("fused"))
