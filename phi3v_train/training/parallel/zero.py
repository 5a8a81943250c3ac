"""Weights, gradients and moments sharded over the processes: DeepSpeed's ZeRO, stages 2 and 3.

Trained weights are held in the compute dtype, with a sharded copy in fp32 (fp32 runs need no copy). Gradients are
averaged by DeepSpeed, so the loss is multiplied by the number of processes; the run sets where a step ends, since
the last step of an epoch may be a short one.
"""

import json
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from phi3v_data.errors import UserError
from phi3v_data.files import load_json, write_text
from phi3v_train.config import OptimConfig
from phi3v_train.distributed.group import Group
from phi3v_train.loss import Losses, Sources, losses_by_key, source_arguments
from phi3v_train.models.directory import is_sharded
from phi3v_train.precision import Precision
from phi3v_train.training.methods import TrainedModel
from phi3v_train.training.optimizer import make_optimizer, set_rates
from phi3v_train.training.parallel.deepspeed_config import import_deepspeed
from phi3v_train.training.parallel.engine import Engine, Update, WrongEngineError
from phi3v_train.training.parallel.shards import Shards
from phi3v_train.training.parallel.zero_parts import (
    Part,
    ShardedMoments,
    has_parts,
    parts_of_stage2,
    parts_of_stage3,
    read_parts,
    take_moments,
    write_parts,
)
from phi3v_train.training.saving import (
    ADAPTER_WEIGHTS,
    own_state,
    read_model,
    read_optimizer,
    stored_name,
    stored_slices,
    write_model,
)

SCALER = "scaler.json"
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
OPTIMIZER = "optimizer.pt"


class ZeroEngine(Engine):
    """A DeepSpeed engine around the loss module; see `Zero2Engine` and `Zero3Engine`.

    Args:
        group: the processes.
        trained: the model, on the device.
        precision: the compute dtype.
        optim: groups and rates of AdamW.
        config: the resolved DeepSpeed configuration.

    Raises:
        UserError: DeepSpeed does not take the configuration.
    """

    stage: ClassVar[int]

    def __init__(
        self, group: Group, trained: TrainedModel, precision: Precision, optim: OptimConfig, config: Mapping[str, Any]
    ) -> None:
        super().__init__(group, trained, precision)
        self.deepspeed = import_deepspeed(group.device.type)
        self.names = {parameter: name for name, parameter in trained.trainable()}
        self.adam = make_optimizer(trained.trainable(), optim, trained.family)
        self.ds: Any
        self.zero: Any
        from deepspeed.runtime.config import DeepSpeedConfigError

        try:
            self.ds, self.zero, _, _ = self.deepspeed.initialize(
                model=self.loss_module, optimizer=self.adam, config=dict(config)
            )
        except (AssertionError, ValueError, DeepSpeedConfigError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"DeepSpeed does not take this configuration: {reason}") from error
        self.check()

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.ds
        return module

    @property
    def in_16_bits(self) -> bool:
        """Whether the fp32 weights are a copy beside those that compute."""
        return self.precision.name != "fp32"

    def check(self) -> None:
        world_size = self.group.world_size
        right: bool = isinstance(self.zero, self.optimizer_class())
        if not right or self.ds.zero_optimization_stage() != self.stage:
            holder = type(self.zero).__name__
            raise WrongEngineError(f"--parallel {self.strategy}: weights are held by {holder} instead")
        if dist.get_world_size(self.zero.dp_process_group) != world_size:
            raise WrongEngineError(f"--parallel {self.strategy}: not all processes hold shards of the weights")
        (held,) = self.group.sum([sum(part.numel for part in self.parts())])
        total = sum(parameter_size(parameter) for parameter in self.names)
        if held != total:
            raise WrongEngineError(f"--parallel {self.strategy}: {held:.0f} of {total} weights are held")

    @abstractmethod
    def optimizer_class(self) -> type:
        """DeepSpeed's class for this stage."""

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """The parts of the optimizer that this process holds."""

    @contextmanager
    def gathered(self, parameters: Iterable[nn.Parameter], *, write: bool = False) -> Iterator[None]:
        """Parameters all-gathered in every process; with `write`, the main one's changes go to all."""
        yield

    def accumulate(
        self, inputs: Mapping[str, Tensor], count: float, *, last: bool, sources: Sources | None = None
    ) -> Losses:
        self.ds.set_gradient_accumulation_boundary(last)
        loss, sums = self.ds(inputs, count, *source_arguments(sources))
        self.ds.backward(loss * self.group.world_size, scale_wrt_gas=False)
        return losses_by_key(loss, sums, sources)

    def update(self, factor: float, max_norm: float) -> Update:
        lr = set_rates(self.adam, factor)
        self.zero.clip_grad = max_norm
        self.ds.step()
        norm = math.inf if self.zero.overflow else float(self.ds.get_global_grad_norm())
        return Update(lr, norm, skipped=bool(self.zero.overflow))

    @torch.no_grad()
    def full_weights(self) -> dict[str, Tensor]:
        """The model's unsharded tensors, trained ones in fp32, of an adapter run the adapters alone.

        They are copied to the main process's CPU; the others help and get nothing.
        """
        adapters_only = self.trained.peft_model is not None
        result: dict[str, Tensor] = {}
        for name, tensor in self.trained.model.state_dict(keep_vars=True).items():
            trained = tensor in self.names
            if adapters_only and not trained:
                continue
            with nullcontext() if trained else self.gathered([tensor]):
                full = self.full_fp32(tensor) if trained else tensor
                if self.group.is_main:
                    result[name] = full.detach().to("cpu", copy=True)
        return result

    def full_fp32(self, parameter: nn.Parameter) -> Tensor:
        """A trained parameter in fp32, unsharded in every process."""
        from deepspeed.utils import safe_get_full_fp32_param

        full: Tensor = safe_get_full_fp32_param(parameter)
        return full

    def write(self, folder: Path, processor: Any) -> None:
        weights = self.full_weights()
        place = self.group.rank_info
        if place.is_main:
            write_model(self.trained, processor, folder, state=weights)
            if self.scales_loss:
                state = {name: getattr(self.zero.loss_scaler, name, None) for name in SCALER_FIELDS}
                write_text(folder / SCALER, json.dumps(state) + "\n")
        write_parts(self.parts(), self.adam.state, folder, place.rank, place.world_size, masters=self.in_16_bits)

    def read(self, folder: Path) -> None:
        with self.gathered(self.trained.model.parameters(), write=True):
            self.read_weights(folder)
        self.zero.refresh_fp32_params()
        state: dict[Any, dict[str, Tensor]] = self.adam.state
        on_device = bool(self.adam.defaults.get("fused"))
        if self.in_16_bits and not has_parts(folder):
            self.read_fp32_weights(folder)
        if is_sharded(folder):
            take_moments(self.parts(), state, ShardedMoments(Shards(folder)), step_on_device=on_device)
        elif has_parts(folder):
            read_parts(self.parts(), state, folder, masters=self.in_16_bits, step_on_device=on_device)
        else:
            take_moments(self.parts(), state, read_optimizer(folder / OPTIMIZER)["moments"], step_on_device=on_device)
        if self.scales_loss and (folder / SCALER).is_file():
            for name, value in load_json(folder / SCALER).items():
                if value is not None:
                    setattr(self.zero.loss_scaler, name, value)

    @torch.no_grad()
    def read_weights(self, folder: Path) -> None:
        """Load the weights, which are unsharded here for the moment."""
        if not is_sharded(folder):
            read_model(self.trained, folder)
            return
        shards, held = Shards(folder), own_state(self.trained.model)
        unknown = sorted(held.keys() ^ set(shards.names()))
        if unknown:
            raise UserError(f"{folder}: is not a checkpoint of this model ({unknown[0]})")
        for name, tensor in held.items():
            tensor.copy_(shards.rows(f"model/{name}"))

    @torch.no_grad()
    def read_fp32_weights(self, folder: Path) -> None:
        """Load this process's shard, in fp32, of weights that another parallel strategy trained in fp32."""
        held: dict[str, list[Part]] = {}
        adapter = self.trained.peft_model is not None
        for part in self.parts():
            held.setdefault(stored_name(part.name) if adapter else part.name, []).append(part)
        if is_sharded(folder):
            shards = Shards(folder)
            found = ((name, shards.rows(f"model/{name}")) for name in held)
        else:
            slices = stored_slices(folder, ADAPTER_WEIGHTS if adapter else None)
            found = ((name, piece[:]) for name, piece in slices if name in held)
        for name, tensor in found:
            for part in held[name]:
                part.of(part.flat.data).copy_(tensor.flatten()[part.start : part.start + part.numel])

    def write_model(self, folder: Path, processor: Any, dtype: torch.dtype) -> None:
        weights = self.full_weights()
        if self.group.is_main:
            write_model(self.trained, processor, folder, dtype=dtype, state=weights)


class Zero2Engine(ZeroEngine):
    """Unsharded weights in every process; gradients, moments and fp32 weights sharded."""

    strategy: ClassVar[str] = "zero2"
    stage: ClassVar[int] = 2

    def optimizer_class(self) -> type:
        from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

        found: type = DeepSpeedZeroOptimizer
        return found

    def check(self) -> None:
        super().check()
        if not self.zero.partition_gradients:
            raise WrongEngineError("--parallel zero2: gradients are not sharded")

    def parts(self) -> Iterator[Part]:
        return parts_of_stage2(self.zero, self.names)

    def full_fp32(self, parameter: nn.Parameter) -> Tensor:
        return super().full_fp32(parameter) if self.in_16_bits else parameter


class Zero3Engine(ZeroEngine):
    """Everything sharded; weights are all-gathered for the layer that is computed."""

    strategy: ClassVar[str] = "zero3"
    stage: ClassVar[int] = 3

    def optimizer_class(self) -> type:
        from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

        found: type = DeepSpeedZeroOptimizer_Stage3
        return found

    def check(self) -> None:
        super().check()
        for name, parameter in self.trained.model.named_parameters():
            held = getattr(parameter, "ds_tensor", None)
            if held is None or held.numel() > math.ceil(parameter_size(parameter) / self.group.world_size):
                raise WrongEngineError(f"--parallel zero3: {name} is not sharded")

    def parts(self) -> Iterator[Part]:
        return parts_of_stage3(self.zero, self.names, self.group.rank)

    @contextmanager
    def gathered(self, parameters: Iterable[nn.Parameter], *, write: bool = False) -> Iterator[None]:
        with self.deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if write else None):
            yield

    @contextmanager
    def unsharded(self) -> Iterator[Any]:
        """All weights at once, without the hooks that would all-gather them layer by layer."""
        offload = self.zero.parameter_offload
        with self.gathered(self.trained.model.parameters()):
            for parameter in self.trained.model.parameters():
                parameter.ds_active_sub_modules.clear()
            for hook in offload.forward_hooks + offload.backward_hooks:
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield self.trained.model
            finally:
                offload._register_deepspeed_module(offload.module)


def parameter_size(parameter: nn.Parameter) -> int:
    """Number of values of a parameter, sharded or not."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
