"""The training step of the full-size model on a device that does not exist: `python benchmarks/model/fake_step.py`.

torch's `FakeTensorMode` computes shapes, dtypes and devices of all tensors, but no values, so 4.1 billion parameters
take no memory. The device is registered with torch from Python; it has autocast as CUDA has it, and fused attention.
The step is the one of a run: `apply_method`, the engine, the optimizer, the inputs of `prepare`. Every operation is
checked for tensors of several devices, matrix products for their dtype; FLOPs are counted (attention's as if it were
not causal), and so are the bytes of all tensors that are alive. Memory that an operation needs only inside, the CUDA
context and fragmentation are not in the figures. QLoRA's 4-bit weights are a stand-in of the same bytes.
"""

import argparse
import json
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from inputs import NUM_ANSWER_TOKENS, full_config
from step import METHODS, SAMPLE, SIDE, SMALL_SAMPLE, TOKENS, host_batch, planned, small_config, trained_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from torch.utils.flop_counter import flop_registry

from phi3v_train.config import MethodConfig, OptimConfig
from phi3v_train.device import change_tensors, to_device
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.tiles import channel_values
from phi3v_train.precision import Precision
from phi3v_train.training import methods
from phi3v_train.training.parallel.single import SingleEngine

NAME = "fakegpu"
RESULT = Path(__file__).parents[1] / "results" / "fake_step.json"
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_dot_product_flash_attention")
COPIES = ("_to_copy", "copy_", "to", "lift_fresh", "set_", "detach")


class DeviceMixUpError(RuntimeError):
    """An operation got tensors of several devices."""


class Backend(_DummyBackendModule):
    """What torch asks a device for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Number formats of autocast."""
        return [torch.bfloat16, torch.float16]


LOW: tuple[str, ...] = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "scaled_dot_product_attention")
HIGH: tuple[str, ...] = (
    "layer_norm",
    "nll_loss",
    "cross_entropy_loss",
    "log_softmax.int",
    "softmax.int",
    "rsqrt",
    "exp",
    "log",
)
HIGH += ("pow.Tensor_Scalar", "sum", "sum.dim_IntList", "cumsum", "upsample_bicubic2d")
"""The operations of this model that CUDA's autocast computes in the low number format, and in fp32."""


def register_device() -> torch.device:
    """The device, with autocast."""
    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=Backend())
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    library = torch.library.Library("aten", "IMPL")
    KEPT.extend((others, library))  # for the life of the process
    for names, low in ((LOW, True), (HIGH, False)):
        for name in names:
            base, _, overload = name.partition(".")
            operation = getattr(getattr(torch.ops.aten, base), overload or "default")
            library.impl(name, partial(cast_then, operation, low), "AutocastPrivateUse1")
    return torch.device(NAME, 0)


KEPT: list[Any] = []


def cast_then(operation: Any, low: bool, *args: Any, **kwargs: Any) -> Any:
    """An operation under autocast: its floating tensors in the low number format, or in fp32."""
    target = torch.get_autocast_dtype(NAME) if low else torch.float32
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]
    with torch._C._ExcludeDispatchKeyGuard(keys):

        def cast(value: Any) -> Any:
            fits = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(target) if fits else value

        return operation(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` by the kernel that keeps no scores; CUDA takes it in half precision without a
    mask.
    """
    assert attn_mask is None, "with a mask attention is not the flash kernel"
    if torch.is_autocast_enabled(NAME):
        low = torch.get_autocast_dtype(NAME)
        query, key, value = query.to(low), key.to(low), value.to(low)
    assert query.dtype in (torch.bfloat16, torch.float16), f"attention in {query.dtype} is not the flash kernel"
    result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
    mixed: Tensor = result[0]
    return mixed


@dataclass
class Watch(TorchDispatchMode):
    """Counts FLOPs and the bytes of the device's tensors that are alive, refuses mixed devices, and notes the dtypes of
    matrix products.

    torch's own counter of FLOPs follows modules, and keeps tensors alive for that.
    """

    device: torch.device
    alive: int = 0
    peak: int = 0
    flop: int = 0
    products: dict[str, int] = field(default_factory=dict)
    held: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = [each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        devices = {each.device for each in given}
        if len(devices) > 1 and name not in COPIES:
            raise DeviceMixUpError(f"{name} got tensors on {', '.join(sorted(map(str, devices)))}")
        if name in PRODUCTS:
            dtype = str(given[0].dtype).removeprefix("torch.")
            self.products[dtype] = self.products.get(dtype, 0) + 1
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flop += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        for each in torch.utils._pytree.tree_leaves(result):
            if isinstance(each, Tensor) and each.device == self.device:
                self.hold(each.untyped_storage())
        return result

    def hold(self, storage: Any) -> None:
        """Count a storage until it is freed."""
        key = storage._cdata
        if key in self.held:
            return
        size = storage.nbytes()
        self.held[key] = weakref.ref(storage, lambda _: self.free(key, size))
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def free(self, key: int, size: int) -> None:
        """A storage is gone."""
        del self.held[key]
        self.alive -= size


class Packed(torch.autograd.Function):
    """A linear layer whose 4-bit weights are made whole for the product, and again for the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, packed: Tensor, features: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.features = features
        whole = packed.new_empty(features, dtype=hidden.dtype)
        return functional.linear(hidden, whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.features, dtype=gradient.dtype), None, None


class Nf4StandIn(nn.Linear):
    """The bytes of nf4 with doubly quantised scales: 4 bits a weight, a byte for 64 weights, fp32 for 256 of these."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        number, device = layer.weight.numel(), layer.weight.device
        self.register_parameter("bias", None)
        packed = torch.empty(number // 2, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", torch.empty(number // 64, dtype=torch.uint8, device=device))
        self.register_buffer("scales_of_scales", torch.empty(number // (64 * 256), device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """Products in the compute dtype, whatever the input's."""
        product: Tensor = Packed.apply(hidden.to(self.dtype), self.weight, (self.out_features, self.in_features))
        return product


def replace_tensors(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` for fake tensors, which cannot be changed in place."""
    if recurse:
        for child in module.children():
            replace_tensors(child, change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter.detach()), requires_grad=parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


@contextmanager
def fake_engine(
    device: torch.device, config: Phi3VConfig, method: MethodConfig, precision: Precision, *, checkpointing: bool
) -> Iterator[tuple[SingleEngine, Watch, FakeTensorMode]]:
    """The product's engine with the model of `config` on the fake device; what it computes inside is watched."""
    channel_values.cache_clear()  # of another mode
    mode = FakeTensorMode()
    watch = Watch(device)
    stand_in: Callable[[Precision], Any] = lambda given: lambda layer: Nf4StandIn(layer, given.dtype)  # noqa: E731
    with (
        mode,
        watch,
        mock.patch.object(functional, "scaled_dot_product_attention", flash_attention),
        mock.patch.object(methods, "nf4_maker", stand_in),
        mock.patch.object(nn.Module, "_apply", replace_tensors),
    ):
        trained = trained_model(config, method, precision, device, checkpointing=checkpointing, built_on="cpu")
        engine = SingleEngine(SingleProcess(device), trained, precision, OptimConfig())
        for group in engine.optimizer.param_groups:  # as on CUDA
            group["fused"], group["foreach"] = True, False
        del trained
        yield engine, watch, mode


def run_step(engine: SingleEngine, watch: Watch, mode: FakeTensorMode, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch and the update, where moments and the gradients of earlier micro-batches are there already; bytes
    of the device, and FLOPs of the micro-batch.
    """
    for parameter in engine.parameters:
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    rest = watch.peak = watch.alive
    watch.products.clear()
    on_host = change_tensors(batch, mode.from_tensor)
    watch.flop = 0
    engine.accumulate(to_device(on_host, watch.device), float(NUM_ANSWER_TOKENS), last=True)
    torch.nn.utils.clip_grad_norm_(engine.parameters, 1.0)
    missing = [name for name, each in zip(engine.names, engine.parameters, strict=True) if each.grad is None]
    assert not missing, f"no gradient reaches {missing[0]}"
    formats = {str(each.grad.dtype) for each in engine.parameters if each.grad is not None}
    engine.optimizer.step()
    engine.optimizer.zero_grad(set_to_none=True)
    return {
        "at_rest": rest,
        "peak": watch.peak,
        "after": watch.alive,
        "flop": watch.flop,
        "products": dict(sorted(watch.products.items())),
        "gradients": sorted(formats),
    }


def case(device: torch.device, config: Phi3VConfig, name: str, *, checkpointing: bool, small: bool) -> dict[str, Any]:
    """A step of a method, beside what `phi3v-train plan` says."""
    method = MethodConfig.model_validate(METHODS[name])
    precision = Precision("bf16", NAME, cache_casts=not checkpointing)
    sample = SMALL_SAMPLE if small else SAMPLE
    batch = host_batch(*sample)
    with fake_engine(device, config, method, precision, checkpointing=checkpointing) as (engine, watch, mode):
        found = run_step(engine, watch, mode, batch)
        trained = sum(parameter.numel() for parameter in engine.parameters)
    plan = planned(config, method, sample, checkpointing=checkpointing)
    assert plan.trained == trained, f"the plan counts {plan.trained} trained parameters, the model has {trained}"
    return {
        "method": name,
        "checkpointing": checkpointing,
        "trained": trained,
        **found,
        "planned": {"at_rest": plan.state, "peak": plan.total},
        "planned_to_peak": round(plan.total / found["peak"], 3),
    }


def main() -> None:
    """Run all cases, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small model, for tests")
    parser.add_argument("--method", action="append", choices=METHODS, help="only this method; may be repeated")
    parser.add_argument("--checkpointing", choices=("on", "off", "both"), default="both")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name} instead of stdout")
    options = parser.parse_args()
    device = register_device()
    config = small_config() if options.small else full_config()
    wanted = {"on": (True,), "off": (False,), "both": (True, False)}[options.checkpointing]
    cases = []
    for name in options.method or METHODS:
        for checkpointing in wanted:
            cases.append(case(device, config, name, checkpointing=checkpointing, small=options.small))
            row = cases[-1]
            gb = " ".join(f"{key} {row[key] / 1e9:.2f}" for key in ("at_rest", "peak"))
            print(
                f"{name}, checkpointing {checkpointing}: GB {gb}, plan {row['planned']['peak'] / 1e9:.2f} "
                f"({row['planned_to_peak']}), {row['flop'] / 1e12:.1f} TFLOP",
                file=sys.stderr,
            )
    for row in cases:  # docs/hardware.md has what the plan says, which the code may change
        del row["planned"], row["planned_to_peak"]
    text = json.dumps(
        {
            "torch": torch.__version__,
            "tokens": TOKENS,
            "tiles": SIDE**2 + 1,
            "labels": NUM_ANSWER_TOKENS,
            "cases": cases,
        },
        indent=1,
    )
    if options.write:
        RESULT.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
