"""Training methods: full, a part frozen, LoRA and its kinds, QLoRA. `apply_method` makes a loaded model ready for one.

Adapters are PEFT's, in PEFT's own layout on disk.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from phi3v_data.errors import UserError, how_to_install
from phi3v_train.config import MethodConfig, OptimConfig
from phi3v_train.models.directory import tiny_family
from phi3v_train.models.family import ModelFamily
from phi3v_train.models.locate import TINY_REVISION
from phi3v_train.models.registry import family_of_model
from phi3v_train.precision import Precision, set_weight_dtypes
from phi3v_train.training.seeds import seed_everything
from phi3v_train.training.targets import check_names, lora_targets, nf4_targets

SMALLEST_4BIT_WIDTH = 64
"""bitsandbytes crashes on a CPU where a layer takes fewer features than one block of nf4 has weights."""


@dataclass(frozen=True)
class TrainedModel:
    """A model made ready for a method.

    `model` is what runs: with adapters, the same model with its linear layers replaced. `peft_model` is PEFT's wrapper
    around it, which knows how to save adapters; None without adapters.
    """

    model: Any
    method: MethodConfig
    peft_model: Any = None

    @property
    def family(self) -> ModelFamily:
        """The model's family."""
        return family_of_model(self.model)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and values of what is trained, in the model's order."""
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def counts(self) -> dict[str, int]:
        """Trainable parameters by part: language, vision, projector."""
        result: dict[str, int] = {}
        family = self.family
        for name, parameter in self.trainable():
            part = family.part_of(name)
            result[part] = result.get(part, 0) + parameter.numel()
        return result


def apply_method(
    model: Any, method: MethodConfig, precision: Precision, *, seed: int, device: torch.device | None
) -> TrainedModel:
    """Freeze, quantise, add adapters, set the number formats and move to the device, unless `device` is None.

    Raises:
        UserError: QLoRA without bitsandbytes, or on a model whose layers are too small for it; or the model lacks
            linear layers that its family's table names.
    """
    family = family_of_model(model)
    model.requires_grad_(not method.use_lora)
    peft_model = None
    if method.use_lora:
        if method.use_qlora:
            quantize(model, precision)
        peft_model = add_adapters(model, method, seed=seed)
    else:
        for name, parameter in model.named_parameters():
            language = family.part_of(name) == "language"
            parameter.requires_grad_(not (method.freeze_language_model if language else method.freeze_vision_model))
        config = model.config.to_dict()
        for name, parameter in model.named_parameters():
            if not family.is_reached(name, config):
                parameter.requires_grad_(False)
    set_weight_dtypes(model, precision)
    if device is not None:
        model.to(device)
    return TrainedModel(model, method, peft_model)


def lora_config(method: MethodConfig, model: Any, *, seed: int) -> Any:
    """PEFT's configuration of the adapters; `seed` is that of the run, which a tiny model was made from."""
    from peft import LoraConfig

    base = getattr(model.config, "_name_or_path", None) or None
    return LoraConfig(
        r=method.lora_rank,
        lora_alpha=whole(method.lora_rank * method.lora_alpha_ratio),
        lora_dropout=method.lora_dropout,
        target_modules=lora_targets(method, family_of_model(model).size(model.config.to_dict())),
        init_lora_weights=True if method.lora_init == "default" else method.lora_init,
        use_dora=method.use_dora,
        use_rslora=method.use_rslora,
        base_model_name_or_path=base,
        revision=f"{TINY_REVISION}{seed}" if base and tiny_family(base) is not None else None,
        task_type="CAUSAL_LM",
    )


def whole(value: float) -> int | float:
    """An int where the value is one: PEFT writes alpha as it is given."""
    return int(value) if math.isclose(value, round(value)) else value


def add_adapters(model: Any, method: MethodConfig, *, seed: int) -> Any:
    """Put adapters into `model` and return PEFT's wrapper; their start depends on the seed alone.

    Raises:
        UserError: the model lacks linear layers that its family's table names and `method` trains.
    """
    from peft import get_peft_model

    config = lora_config(method, model, seed=seed)
    check_table(model, config.target_modules)
    seed_everything(seed, "adapters")
    with stand_ins(model):
        return get_peft_model(model, config, autocast_adapter_dtype=True)


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """For a while, parameters on the device `meta` are a zero on the CPU that is expanded to their shape.

    PEFT moves adapters to the device of their layer, where these would lose their values.
    """
    replaced = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                replaced.append((module, name, parameter))
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=parameter.requires_grad)
    try:
        yield
    finally:
        for module, name, parameter in replaced:
            module._parameters[name] = parameter


def check_table(model: Any, targets: str) -> None:
    """Raise UserError unless the model has the linear layers of its family's table that `targets` matches."""
    family = family_of_model(model)
    check_names(family.name, family.size(model.config.to_dict()), targets, dict(model.named_modules()))


def quantize(model: Any, precision: Precision) -> None:
    """Replace the decoder's linear layers by nf4 ones, layer by layer; they are packed when they move to a device.

    Raises:
        UserError: bitsandbytes is missing, a layer is too narrow, or the model lacks one that its family's table names.
    """
    targets = nf4_targets(family_of_model(model).size(model.config.to_dict()))
    check_table(model, targets)
    make = nf4_maker(precision)
    for name, layer in named_linears(model, targets):
        if layer.in_features < SMALLEST_4BIT_WIDTH:
            raise UserError(
                f"--use_qlora: {name} takes {layer.in_features} features, fewer than the {SMALLEST_4BIT_WIDTH} that 4 "
                "bits need: use --use_lora for a model this small"
            )
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, make(layer))
    model.is_loaded_in_4bit = True


def named_linears(model: nn.Module, pattern: str) -> list[tuple[str, nn.Linear]]:
    """The linear layers whose full names match."""
    import re

    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(pattern, name)
    ]


def nf4_maker(precision: Precision) -> Callable[[nn.Linear], nn.Module]:
    """A function from a linear layer to its 4-bit twin."""
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise UserError(f"--use_qlora needs the package bitsandbytes: {how_to_install('qlora')}") from None

    def make(layer: nn.Linear) -> nn.Module:
        twin: Any = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=precision.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        twin.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=twin
        )
        if layer.bias is not None:
            twin.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        # On CPUs with AVX512-bf16 an evaluation would repack the weights, and gradients after it be silently wrong.
        twin.support_avx512bf16_for_cpu = False
        packed: nn.Module = twin
        return packed

    return make


def refuse_unfit(method: MethodConfig, optim: OptimConfig) -> None:
    """Refuse what cannot run here, before a model is loaded.

    Raises:
        UserError: QLoRA or 8-bit moments without bitsandbytes, adapters without peft.
    """
    from importlib.util import find_spec

    option = "--use_qlora" if method.use_qlora else f"--optim {optim.optim}" if optim.is_8bit else None
    if option and find_spec("bitsandbytes") is None:
        raise UserError(f"{option} needs the package bitsandbytes: {how_to_install('qlora')}")
    if method.use_lora and find_spec("peft") is None:
        raise UserError(f"--use_lora needs the package peft: {how_to_install('train')}")
