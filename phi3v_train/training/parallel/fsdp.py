"""Every process holds a shard of each tensor, of its gradient and of its moments (torch's FSDP2, `fully_shard`).

The rows of a layer are all-gathered when it is computed, and its gradients are reduce-scattered. Trained
weights stay in fp32; what travels is in the compute dtype, gradients are summed in fp32.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from phi3v_data.errors import UserError
from phi3v_data.files import write_text
from phi3v_train.config import OptimConfig
from phi3v_train.distributed.group import Group
from phi3v_train.models.directory import SHARDS
from phi3v_train.precision import Precision
from phi3v_train.training.methods import TrainedModel
from phi3v_train.training.parallel.engine import WrongEngineError
from phi3v_train.training.parallel.row_source import RowSource
from phi3v_train.training.parallel.shards import SCALER, Part, local_part, rows_here, write_shards
from phi3v_train.training.parallel.torch_engine import OPTIMIZER, TorchEngine
from phi3v_train.training.saving import (
    ADAPTER_WEIGHTS,
    own_state,
    stored_name,
    stored_slices,
    write_model,
    write_optimizer,
)
from phi3v_train.training.saving import cast as to_dtype

BASE_LAYER = ".base_layer."
"""In the name of a layer's own parameter, where PEFT has put adapters around the layer."""


class FSDPEngine(TorchEngine):
    """`fully_shard` over layers and the whole model; it averages over processes, so the loss is multiplied by their
    number.

    `keep_unsharded_grads`: the gradients of a step's first micro-batches stay unsharded until the last one, which saves
    exchanges and costs the memory of all trained weights in fp32. `rows`: the model's own parameters are on the device
    `meta`, and each process reads its rows of them once they are sharded; adapters have their values.
    """

    strategy: ClassVar[str] = "fsdp"

    def __init__(
        self,
        group: Group,
        trained: TrainedModel,
        precision: Precision,
        optim: OptimConfig,
        *,
        keep_unsharded_grads: bool = True,
        rows: RowSource | None = None,
    ) -> None:
        self.rows = rows
        if trained.method.use_qlora:
            raise UserError("--parallel fsdp: 4-bit weights cannot be sharded; use --parallel ddp with --use_qlora")
        self.keep_unsharded_grads = keep_unsharded_grads
        super().__init__(group, trained, precision, optim)

    def wrap(self) -> nn.Module:
        device = self.group.device
        mesh = init_device_mesh(device.type, (self.group.world_size,))
        low = self.precision.name != "fp32"
        policy = MixedPrecisionPolicy(
            param_dtype=self.precision.dtype if low else None,
            reduce_dtype=torch.float32 if low else None,
            cast_forward_inputs=False,
        )
        # Logits are a view of what the head makes; nothing is done to them in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        model = self.trained.model
        for layer in self.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        if self.rows is not None:
            materialize(model, device)
            self.read_base(self.rows)
        return self.loss_module

    def backward_scale(self) -> float:
        return float(self.group.world_size)

    @property
    def layers(self) -> list[nn.Module]:
        """Modules that are gathered one by one; everything outside of them is one more unit."""
        classes = self.trained.family.layer_classes(self.trained.model)
        modules: Iterator[nn.Module] = self.trained.model.modules()
        return [module for module in modules if isinstance(module, classes)]

    @property
    def root(self) -> FSDPModule:
        """The model as torch made it."""
        return cast(FSDPModule, self.trained.model)

    @property
    def units(self) -> list[FSDPModule]:
        """The units that are all-gathered at once, the root among them."""
        return [module for module in self.trained.model.modules() if isinstance(module, FSDPModule)]

    def check(self) -> None:
        world_size = self.group.world_size
        model = self.trained.model
        units = [model, *self.layers]
        bare = [type(unit).__name__ for unit in units if not isinstance(unit, FSDPModule)]
        if bare:
            raise WrongEngineError(f"--parallel fsdp: {bare[0]} is not sharded")
        for name, parameter in model.named_parameters():
            held = parameter.data
            if not isinstance(held, DTensor) or held.placements != (Shard(0),) or held.device_mesh.size() != world_size:
                raise WrongEngineError(f"--parallel fsdp: {name} is not sharded over {world_size} processes")

    def no_sync(self) -> AbstractContextManager[Any]:
        return self._without_reduction()

    @contextmanager
    def _without_reduction(self) -> Iterator[None]:
        if not self.keep_unsharded_grads:
            yield
            return
        self.root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.root.set_requires_gradient_sync(True)

    def clip(self, max_norm: float) -> float:
        limit = max_norm if max_norm > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @contextmanager
    def unsharded(self) -> Iterator[Any]:
        """The weights are all-gathered, in the compute dtype, and stay so."""
        units = self.units
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield self.trained.model
        finally:
            for unit in units:
                unit.set_reshard_after_forward(unit is not self.root, recurse=False)
                unit.reshard()

    def write(self, folder: Path, processor: Any) -> None:
        """An adapter is all-gathered and written as by one process; a full model is written sharded."""
        place = self.group.rank_info
        if self.trained.peft_model is not None:
            state = self.gathered_state(None, trained_only=True)
            optimizer = self.optimizer_state()
            if place.is_main:
                write_model(self.trained, processor, folder, state=state)
                write_optimizer(optimizer, folder / OPTIMIZER)
            return
        write_shards(folder, place.rank, place.world_size, self.parts())
        if place.is_main:
            text = json.dumps(self.scaler.state_dict()) + "\n"
            write_text(folder / SHARDS / SCALER, text)
            self.trained.model.config.save_pretrained(folder)
            self.trained.model.generation_config.save_pretrained(folder)
            processor.save_pretrained(folder)

    @torch.no_grad()
    def read_base(self, rows: RowSource) -> None:
        """Read this process's rows of the model that training begins with, rounded to the compute dtype first."""
        assert rows.directory is not None
        adapters = {name for name, _ in self.trained.trainable()} if self.trained.peft_model is not None else set()
        held = {
            rows.keys[name.replace(BASE_LAYER, ".")]: tensor
            for name, tensor in own_state(self.trained.model).items()
            if name not in adapters
        }
        for key, stored in stored_slices(rows.directory):
            if key in held:
                part = local_part(held[key])
                start, stop = rows_here(held[key])
                if stop > start:
                    part.copy_(stored[start:stop].to(self.precision.dtype).view(part.shape))

    @torch.no_grad()
    def read_weights(self, folder: Path) -> None:
        """Of every tensor, only the rows that this process holds are read."""
        adapter = self.trained.peft_model is not None
        held = dict(self.trained.trainable()) if adapter else own_state(self.trained.model)
        files = {stored_name(name) if adapter else name: tensor for name, tensor in held.items()}
        missing = set(files)
        for key, rows in stored_slices(folder, ADAPTER_WEIGHTS if adapter else None):
            if key not in files or list(files[key].shape) != rows.get_shape():
                raise UserError(f"{folder}: is not a checkpoint of this model ({key} does not fit)")
            start, stop = rows_here(files[key])
            if stop > start:
                local_part(files[key]).copy_(rows[start:stop])
            missing.discard(key)
        if missing:
            raise UserError(f"{folder}: is not a checkpoint of this model ({min(missing)} is missing)")

    def write_model(self, folder: Path, processor: Any, dtype: torch.dtype) -> None:
        adapter = self.trained.peft_model is not None
        state = self.gathered_state(None if adapter else dtype, trained_only=adapter)
        if self.group.is_main:
            write_model(self.trained, processor, folder, dtype=dtype, state=state)

    def gathered_state(self, dtype: torch.dtype | None, *, trained_only: bool) -> dict[str, Tensor]:
        """The unsharded weights by name, on the CPU, on the main process; `dtype` of floating ones, None: their own."""
        wanted = {name for name, _ in self.trained.trainable()} if trained_only else None
        state = {}
        for name, tensor in own_state(self.trained.model).items():
            if wanted is None or name in wanted:
                whole = gathered(tensor)
                if self.group.is_main:
                    state[name] = whole.cpu() if dtype is None else to_dtype(whole, dtype)
        return state

    def optimizer_state(self) -> dict[str, Any]:
        moments: dict[str, dict[str, Tensor]] = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                whole = gathered(value)
                if self.group.is_main:
                    moments.setdefault(name, {})[key] = whole.cpu()
        return {"moments": moments, "scaler": self.scaler.state_dict()}

    def parts(self) -> Iterator[Part]:
        """The rows that this process writes; what all of them hold is written by the main one."""
        for name, tensor in own_state(self.trained.model).items():
            yield from self._part(f"model/{name}", tensor)
        for name, parameter in zip(self.names, self.parameters, strict=True):
            state: Mapping[str, Tensor] = self.optimizer.state.get(parameter, {})
            for key, value in state.items():
                yield from self._part(f"{key}/{name}", value)

    def _part(self, key: str, tensor: Tensor) -> Iterator[Part]:
        if isinstance(tensor, DTensor):
            start, stop = rows_here(tensor)
            if stop > start:
                yield Part(key, local_part(tensor), start, len(tensor))
        elif self.group.is_main:
            yield Part(key, tensor, 0, len(tensor) if tensor.dim() else 0)


def materialize(model: Any, device: torch.device) -> None:
    """Give what is on the device `meta` memory on `device`, its values undefined, and move the rest there.

    A parameter with several names (a head tied to the embedding) stays one.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    move: Any = model._apply
    move(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    for first, *others in names.values():
        for other in others:
            parent, _, leaf = other.rpartition(".")
            model.get_submodule(parent)._parameters[leaf] = model.get_parameter(first)


def gathered(tensor: Tensor) -> Tensor:
    """The unsharded tensor; called by all processes."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    whole: Tensor = tensor.full_tensor()
    return whole.detach()
