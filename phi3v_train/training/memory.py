"""Memory that a run needs, by arithmetic alone: parameter counts from the configuration, bytes by what is trained.

Weights, gradients and AdamW's moments are exact; activations are an estimate that counts, per sample, what gradient
checkpointing keeps (the input of every layer), one layer being recomputed with the gradients in it, and the logits at
labelled tokens; without checkpointing, all that the layers keep. Attention is fused: no scores are kept. It is within
10 % of the bytes of all tensors in a step of the full-size model on a device without memory, see
`benchmarks/model/fake_step.py`. The CUDA context and fragmentation are not in it, so a method is said to fit when it
needs at most `USABLE` of the memory.

Over N devices, of the bytes of each trained parameter and of each frozen one (e bytes an element of the compute dtype):

    ddp    all of them on every device: 16 trained (fp32 weight 4, gradient 4, moments 8), e frozen
    fsdp   16/N and e/N, and the layers at work whole
    zero2  e for the computing copy, (4 master + 4 gradient + 8 moments)/N; e frozen; two buffers for the exchange
    zero3  (e + 4 + 4 + 8)/N and e/N; a buffer, and up to `ZERO3_LIVE` parameters whole

With `--optim adamw_8bit` the moments take 2 bytes and 1/32 instead of 8, see `MOMENT_BYTES`.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeAlias

from phi3v_train.config import MethodConfig, OptimName
from phi3v_train.models.size import Component, ModelSize, Stack
from phi3v_train.training.targets import targeted

GB = 1e9
USABLE = 0.9
Parallel: TypeAlias = Literal["ddp", "fsdp", "zero2", "zero3"]

ZERO_BUCKET = 50_000_000
"""Elements of one of ZeRO's exchange buffers, which it makes whatever is trained. DeepSpeed's default, ten times that,
takes more memory than LoRA saves; 100 MB in 16 bits keep a link busy."""

ZERO3_LIVE = 1_000_000_000
"""Parameters that ZeRO-3 holds whole at most; DeepSpeed's default."""

MOMENT_BYTES: dict[OptimName, float] = {
    "adamw": 8,
    "adamw_8bit": 2 * (1 + 4 / 256),
    "paged_adamw_8bit": 2 * (1 + 4 / 256),
}
"""Bytes of both moments per trained parameter. In 8 bits: a byte each, and an fp32 scale per block of 256 elements
(`Optimizer2State.init_state` of bitsandbytes 0.44 and later). That tensors of fewer than 4,096 elements keep fp32
moments is left out. Paged moments are counted as on the GPU, where each step needs them; between steps they may be on
the CPU."""


def adapter_parameters(size: ModelSize, method: MethodConfig) -> int:
    """Parameters of the LoRA adapters.

    Raises:
        UserError: `--lora_targets` matches no layer.
    """
    sizes = {name: linear for group in size.table for name, linear in group.named()}
    chosen = [sizes[name] for name in targeted(method, size)]
    magnitudes = sum(linear.outputs for linear in chosen) if method.use_dora else 0
    return sum(method.lora_rank * (linear.inputs + linear.outputs) for linear in chosen) + magnitudes


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device that needs most.

    `weights` are those that a device keeps: all, or its shard, with the fp32 masters of ZeRO among them. `gathered` is
    what sharding adds for a while: whole layers, all-gathered to be computed, and the buffers of an exchange.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    trained: int
    gathered: int = 0

    @property
    def state(self) -> int:
        """Memory that is kept from step to step."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> int:
        """Everything."""
        return self.state + self.gathered + self.activations


def estimate(
    size: ModelSize,
    method: MethodConfig,
    *,
    dtype: str,
    tokens: int,
    tiles: int,
    batch_size: int = 1,
    labels: int = 16,
    checkpointing: bool = True,
    parallel: Parallel = "ddp",
    world_size: int = 1,
    optim: OptimName = "adamw",
) -> Memory:
    """Memory of one of `world_size` devices that share the work as `parallel` says.

    `tokens`, `tiles` and `labels` are those of a large sample; `batch_size` samples are computed at once on a device.
    Under fsdp, gradients are divided after every micro-batch. `optim` decides the bytes of the moments.
    """
    element = _element_bytes(dtype)
    activations = batch_size * sample_activations(
        size, method, dtype=dtype, tokens=tokens, tiles=tiles, labels=labels, checkpointing=checkpointing
    )
    trained, frozen = _parameters(size, method, element)
    moments = ceil(trained * MOMENT_BYTES[optim])
    if parallel == "ddp" or world_size == 1:
        activations += _copies_of_weights(size, method, element, checkpointing=checkpointing)
        return Memory(trained * 4 + frozen, trained * 4, moments, activations, trained)
    moments = ceil(moments / world_size)
    unused = size.vision_unused * element  # buffers, which nothing divides
    if parallel == "fsdp":
        return Memory(
            ceil((trained * 4 + frozen - unused) / world_size) + unused,
            ceil(trained * 4 / world_size),
            moments,
            activations,
            trained,
            _whole_layers(size, method, element),
        )
    shard = ceil(trained * 4 / world_size)
    copy = trained * element + frozen
    if parallel == "zero2":
        return Memory(copy + shard, shard, moments, activations, trained, 2 * ZERO_BUCKET * element)
    masters = shard if dtype != "fp32" else 0
    live = (min(ZERO3_LIVE, size.total) + ZERO_BUCKET) * element
    return Memory(ceil((copy - unused) / world_size) + unused + masters, shard, moments, activations, trained, live)


def loading_bytes(size: ModelSize, method: MethodConfig, *, dtype: str) -> int:
    """Bytes of host memory that a process holds while it loads the model: all weights, trained ones in fp32.

    4-bit weights are packed when they move to the device. A process of FSDP that reads its rows of the weights only
    holds its share of these bytes.
    """
    element = _element_bytes(dtype)
    if method.use_lora:
        return size.total * element + adapter_parameters(size, method) * 4
    trained, frozen = _parameters(size, method, element)
    return trained * 4 + frozen


def fits(memory: Memory, available: int) -> bool:
    """Whether a device of `available` bytes holds it with room to spare."""
    return memory.total <= USABLE * available


def _parameters(size: ModelSize, method: MethodConfig, element: int) -> tuple[int, int]:
    """Number of trained parameters, and bytes of the frozen ones."""
    frozen = size.total
    if method.use_lora:
        trained = adapter_parameters(size, method)
    else:
        language = 0 if method.freeze_language_model else size.language
        trained = language + (0 if method.freeze_vision_model else size.vision_trained)
        frozen -= trained
    frozen *= element
    if method.use_qlora:
        # nf4 with doubly quantised scales: 4 bits a weight, 8 bits for 64 weights, 32 bits for 256 scales.
        packed = 4 + 8 / 64 + 32 / (64 * 256)
        frozen -= round(size.nf4_weights * (element - packed / 8))
    return trained, frozen


def _element_bytes(dtype: str) -> int:
    """Bytes of an element of the compute dtype."""
    return 4 if dtype == "fp32" else 2


def sample_activations(
    size: ModelSize, method: MethodConfig, *, dtype: str, tokens: int, tiles: int, labels: int, checkpointing: bool
) -> int:
    """Bytes that one sample keeps between forward and backward pass."""
    element = _element_bytes(dtype)
    logits = labels * size.vocab * 8
    passed: list[tuple[Stack, Component, int, int]] = [(size.decoder, "language", tokens, element)]
    if not method.freeze_vision_model:
        # Under autocast norms give fp32, and so the sums of the tower's layers are.
        passed.append((size.tower, "vision", tiles * size.tile_tokens, 4))
    kept, working = 0, 0
    for stack, component, number, hidden_bytes in passed:
        layers = size.num_layers(component)
        if not layers:
            continue
        whole = (layers * stack.kept + _trained_inputs(size, method, component)) * number * element
        widest = max(linear.outputs for group in size.groups(component) for linear in group.linears)
        gradients = IN_WORK * widest * number * element
        inputs = layers * number * stack.hidden * hidden_bytes
        # When the tower's gradients are computed, those of the decoder, which come first, are done.
        freed = kept if component == "vision" else 0
        kept += inputs if checkpointing else whole
        working = max(working, gradients + (whole // layers if checkpointing else 0) - freed)
    return kept + working + logits


IN_WORK = 4
"""Tensors as wide as the widest output of a layer that its backward pass holds beside what is kept: gradients of the
MLP's product and of its factors, and copies of them. Found with `benchmarks/model/fake_step.py`."""


def _trained_inputs(size: ModelSize, method: MethodConfig, component: Component) -> int:
    """Features per token that all layers of a component keep for the gradients of their weights: inputs of trained
    linear layers, and of adapters.
    """
    if method.freeze_language_model if component == "language" else method.freeze_vision_model:
        return 0
    chosen = set(targeted(method, size)) if method.use_lora else None
    return sum(
        linear.inputs
        for group in size.groups(component)
        for name, linear in group.named()
        if chosen is None or name in chosen
    )


def _copies_of_weights(size: ModelSize, method: MethodConfig, element: int, *, checkpointing: bool) -> int:
    """Bytes of weights in the compute dtype beside those that are held, for products and for gradients.

    Weights trained in fp32 are cast for every product, and the copies are kept for the backward pass: those of one
    layer with checkpointing, else of all. A gradient is there in both formats before it is added. 4-bit weights of a
    linear layer are made whole.
    """
    if method.use_qlora:
        return element * max(linear.weights for group in size.table if group.nf4 for linear in group.linears)
    if method.use_lora or element == 4:
        return 0
    trained: list[Component] = [] if method.freeze_language_model else ["language", "head"]
    trained += [] if method.freeze_vision_model else ["vision"]
    largest = max((linear.weights for each in trained for g in size.groups(each) for linear in g.linears), default=0)
    if checkpointing:
        casts = max((size.weights(each) // max(size.num_layers(each), 1) for each in trained), default=0)
    else:
        casts = sum(size.weights(each) for each in trained)
    return casts * element + largest * (element + 4)


def _whole_layers(size: ModelSize, method: MethodConfig, element: int) -> int:
    """Bytes that FSDP gathers: what is outside the layers, one layer at work and the next one; with their gradients
    before these are sharded again.
    """
    layer = size.weights("language") // size.num_layers("language")
    outside = size.language - size.weights("language") + size.vision_outside
    weights = outside + 2 * layer
    if method.use_lora:
        return weights * element
    trained_outside = 0 if method.freeze_language_model else outside
    trained_layer = size.vision_layer if method.freeze_language_model else layer
    return (weights + trained_outside + trained_layer) * element
