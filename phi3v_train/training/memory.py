"""Memory that a run needs, by arithmetic alone: parameter counts from the configuration, bytes by what is trained.

Weights, gradients and AdamW's moments are exact; activations are an estimate that counts, a sample, what gradient
checkpointing keeps (the input of every layer), one layer being recomputed, and the logits at labelled tokens. The CUDA
context and fragmentation are not in it, so a method is said to fit when it needs at most `USABLE` of the memory.

Over N devices, of the bytes of each trained parameter and of each frozen one (e bytes an element of the compute dtype):

    ddp    all of them on every device: 16 trained (fp32 weight 4, gradient 4, moments 8), e frozen
    fsdp   16/N and e/N, and the layers at work whole
    zero2  e for the computing copy, (4 master + 4 gradient + 8 moments)/N; e frozen; two buffers for the exchange
    zero3  (e + 4 + 4 + 8)/N and e/N; a buffer, and up to `ZERO3_LIVE` parameters whole

With `--optim adamw_8bit` the moments take 2 bytes and 1/32 instead of 8, see `MOMENT_BYTES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, TypeAlias

from phi3v_train.config import MethodConfig, OptimName
from phi3v_train.training.targets import linear_names, targeted

GB = 1e9
USABLE = 0.9
PATCHES = 577
"""Tokens of one tile in the vision tower."""

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

OFFICIAL_SIZES: dict[str, int] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
"""Of both released models, for plans without a model at hand."""

OFFICIAL_VISION: dict[str, int] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Shapes that decide the memory, read from a `config.json`."""

    hidden: int
    intermediate: int
    layers: int
    qkv: int
    attention: int
    vocab: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_layers_used: int
    patch: int
    positions: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelSize":
        """Of the parsed `config.json`; an empty mapping stands for the released models."""
        text = {name: int(config.get(name) or default) for name, default in OFFICIAL_SIZES.items()}
        image = dict(config.get("img_processor") or {})
        vision = OFFICIAL_VISION | {k: v for k, v in (image.get("vision_config") or {}).items() if k in OFFICIAL_VISION}
        head = int(config.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])
        index = int(image.get("layer_idx", -2))
        total = vision["num_hidden_layers"]
        return cls(
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            qkv=(text["num_attention_heads"] + 2 * text["num_key_value_heads"]) * head,
            attention=text["num_attention_heads"] * head,
            vocab=text["vocab_size"],
            vision_hidden=vision["hidden_size"],
            vision_intermediate=vision["intermediate_size"],
            vision_layers=total,
            vision_layers_used=total + 1 + index if index < 0 else index,
            patch=vision["patch_size"],
            positions=(vision["image_size"] // vision["patch_size"]) ** 2 + 1,
        )

    @property
    def decoder_linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each linear layer of one decoder layer."""
        h, m = self.hidden, self.intermediate
        return (h, self.qkv), (self.attention, h), (h, 2 * m), (m, h)

    @property
    def vision_linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each linear layer of one tower layer."""
        w, m = self.vision_hidden, self.vision_intermediate
        return (*[(w, w)] * 4, (w, m), (m, w))

    @property
    def projector_linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the projector's two layers."""
        return (4 * self.vision_hidden, self.hidden), (self.hidden, self.hidden)

    @property
    def decoder_weights(self) -> int:
        """Weights in the decoder layers' linear layers: what 4 bits apply to."""
        return self.layers * sum(i * o for i, o in self.decoder_linears)

    @property
    def language(self) -> int:
        """Parameters of decoder, embedding and head."""
        return self.decoder_weights + self.layers * 2 * self.hidden + self.hidden + 2 * self.vocab * self.hidden

    def vision(self, layers: int | None = None) -> int:
        """Parameters of tower (with `layers` of its layers), projector and separators."""
        w = self.vision_hidden
        layer = sum(i * o + o for i, o in self.vision_linears) + 4 * w
        outside = w + 3 * self.patch**2 * w + self.positions * w + 4 * w
        projector = sum(i * o + o for i, o in self.projector_linears)
        return (self.vision_layers if layers is None else layers) * layer + outside + projector + 8 * w

    @property
    def total(self) -> int:
        """Parameters of the checkpoint."""
        return self.language + self.vision()

    @property
    def vision_trained(self) -> int:
        """Parameters of the vision part that a loss reaches: no layer behind the last used one, no norm after it."""
        return self.vision(self.vision_layers_used) - (
            2 * self.vision_hidden if self.vision_layers_used < self.vision_layers else 0
        )

    @property
    def vision_unused(self) -> int:
        """Parameters of the vision part that no loss reaches."""
        return self.vision() - self.vision_trained

    def adapters(self, method: MethodConfig) -> int:
        """Parameters of the LoRA adapters.

        Raises:
            UserError: `--lora_targets` matches no layer.
        """
        linears = {
            "decoder": self.decoder_linears,
            "head": ((self.hidden, self.vocab),),
            "tower": self.vision_linears,
            "projector": self.projector_linears,
        }
        names = dict(linear_names(self.layers, self.vision_layers_used))
        found = [names[name] for name in targeted(method, self.vision_layers_used, names)]
        shapes = [linears[part][number] for part, number in found]
        magnitudes = sum(o for _, o in shapes) if method.use_dora else 0
        return sum(method.lora_rank * (i + o) for i, o in shapes) + magnitudes


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device that needs most.

    `weights` are those that a device keeps: all, or its shard, with the fp32 masters of ZeRO among them. `gathered` is
    what sharding adds for a while: whole layers brought together to be computed, and the buffers of an exchange.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    trained: int
    gathered: int = 0

    @property
    def state(self) -> int:
        """What stays from step to step."""
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
    element = 4 if dtype == "fp32" else 2
    activations = batch_size * _sample_activations(
        size, method, element, tokens=tokens, tiles=tiles, labels=labels, checkpointing=checkpointing
    )
    trained, frozen = _parameters(size, method, element)
    moments = ceil(trained * MOMENT_BYTES[optim])
    if parallel == "ddp" or world_size == 1:
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


def fits(memory: Memory, available: int) -> bool:
    """Whether a device of `available` bytes holds it with room to spare."""
    return memory.total <= USABLE * available


def _parameters(size: ModelSize, method: MethodConfig, element: int) -> tuple[int, int]:
    """Number of trained parameters, and bytes of the frozen ones."""
    frozen = size.total
    if method.use_lora:
        trained = size.adapters(method)
    else:
        language = 0 if method.freeze_language_model else size.language
        trained = language + (0 if method.freeze_vision_model else size.vision_trained)
        frozen -= trained
    frozen *= element
    if method.use_qlora:
        # nf4 with doubly quantised scales: 4 bits a weight, 8 bits for 64 weights, 32 bits for 256 scales.
        packed = 4 + 8 / 64 + 32 / (64 * 256)
        frozen -= round(size.decoder_weights * (element - packed / 8))
    return trained, frozen


def _sample_activations(
    size: ModelSize, method: MethodConfig, element: int, *, tokens: int, tiles: int, labels: int, checkpointing: bool
) -> int:
    """Bytes that one sample holds between forward and backward pass."""
    vision_trained = not method.freeze_vision_model
    layers = size.layers * tokens * size.hidden * element
    if vision_trained:
        layers += size.vision_layers_used * tiles * PATCHES * size.vision_hidden * element
    one_layer = tokens * (2 * size.hidden + size.qkv + 3 * size.intermediate) * element
    if not checkpointing:
        layers += size.layers * one_layer
        if vision_trained:
            width = 6 * size.vision_hidden + 2 * size.vision_intermediate
            layers += size.vision_layers_used * tiles * PATCHES * width * element
    return layers + one_layer + labels * size.vocab * 8


def _whole_layers(size: ModelSize, method: MethodConfig, element: int) -> int:
    """Bytes that FSDP brings together: what lies outside the layers, one layer at work and the next one; with their
    gradients before these are divided again.
    """
    layer = size.decoder_weights // size.layers
    outside = size.language - size.decoder_weights + size.vision(0)
    weights = outside + 2 * layer
    if method.use_lora:
        return weights * element
    trained_outside = 0 if method.freeze_language_model else outside
    trained_layer = size.vision(1) - size.vision(0) if method.freeze_language_model else layer
    return (weights + trained_outside + trained_layer) * element
