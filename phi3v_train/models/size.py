"""Sizes of a model by arithmetic alone: its linear layers in one table, and the few numbers beside it.

A family makes a `ModelSize` from a parsed `config.json`. LoRA targets, nf4 targets, memory and work are all derived
from it; needs no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Component: TypeAlias = Literal["language", "head", "vision", "projector"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: its name within a layer or a module, and its features."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Weights without the bias."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """A row of the table: `PREFIX.N.NAME` in each of `num_layers` equal layers, or `PREFIX.NAME` once (None).

    Only layers that a loss reaches are in it: `has_unused_layers` says that the model has more of them behind these.
    `layers` are the numbers of the layers that have these linear layers, where those are not the first ones. `nf4`:
    QLoRA keeps their weights in 4 bits.
    """

    component: Component
    prefix: str
    linears: tuple[Linear, ...]
    num_layers: int | None = None
    has_unused_layers: bool = False
    nf4: bool = False
    layers: tuple[int, ...] = ()

    @property
    def copies(self) -> int:
        """How many times each linear layer is there."""
        return 1 if self.num_layers is None else self.num_layers

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the layers; empty if the linear layers are there once."""
        return self.layers or (() if self.num_layers is None else tuple(range(self.num_layers)))

    @property
    def weights(self) -> int:
        """Weights of one layer's linear layers, without biases."""
        return sum(linear.weights for linear in self.linears)

    @property
    def parameters(self) -> int:
        """Weights and biases of one layer's linear layers."""
        return sum(linear.parameters for linear in self.linears)

    def named(self) -> Iterator[tuple[str, Linear]]:
        """Full name of every linear layer, and its sizes."""
        parts = [self.prefix] if self.prefix else []
        for layer in self.numbers or [None]:
            for linear in self.linears:
                number = [] if layer is None else [str(layer)]
                yield ".".join([*parts, *number, linear.name]), linear


@dataclass(frozen=True, slots=True)
class Stack:
    """Sizes of equal layers, decoder or vision tower, that are not in the table.

    `hidden` features pass between layers, `attention` are those of all heads together, `kept` those that a token holds
    within one layer until its backward pass, if no weight of it is trained; `norms` are a layer's parameters beside its
    linear layers.
    """

    hidden: int = 0
    attention: int = 0
    kept: int = 0
    norms: int = 0


def kept_in_decoder(hidden: int, attention: int, kv: int, inner: int) -> int:
    """Features of 16 bits that a token holds within a decoder layer of frozen weights.

    Inputs of both norms in fp32; queries, keys and values as projected, queries and keys rotated, the result of
    attention; gate, its activation and the other factor of the MLP.
    """
    return 4 * hidden + (attention + 2 * kv) + (attention + kv) + attention + 3 * inner


def kept_in_tower(width: int, inner: int) -> int:
    """The same within a tower layer: inputs of both norms in fp32 and their results, queries, keys, values and the
    result of attention; the MLP's features and the factor of its activation.
    """
    return 8 * width + 2 * inner


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Sizes that decide memory and work.

    Attributes:
        table: every linear layer that a loss reaches.
        decoder: the language model's layers.
        vocab: entries of the head.
        language_other: parameters of the language part that are neither in the table nor in layers: embedding, norm.
        tower: the vision tower's layers.
        vision_other: parameters of tower and projector that are neither in the table nor in layers.
        unused_vision_layers: tower layers behind the last one whose output is used.
        unused_vision_other: of `vision_other`, those that no loss reaches.
        tile_tokens: tokens of one tile (a whole image where there are no tiles) in the tower.
        tile_features: tokens that the projector makes of a tile.
        patch_weights: weights of the patch embedding.
    """

    table: tuple[LinearGroup, ...]
    decoder: Stack
    vocab: int
    language_other: int
    tower: Stack = Stack()
    vision_other: int = 0
    unused_vision_layers: int = 0
    unused_vision_other: int = 0
    tile_tokens: int = 0
    tile_features: int = 0
    patch_weights: int = 0

    def groups(self, component: Component) -> list[LinearGroup]:
        """Rows of the table."""
        return [group for group in self.table if group.component == component]

    def num_layers(self, component: Component) -> int:
        """Layers of a component that run."""
        return max((group.numbers[-1] + 1 for group in self.groups(component) if group.numbers), default=0)

    def weights(self, component: Component) -> int:
        """Weights of a component's linear layers, without biases."""
        return sum(group.copies * group.weights for group in self.groups(component))

    def parameters(self, component: Component) -> int:
        """Weights and biases of a component's linear layers."""
        return sum(group.copies * group.parameters for group in self.groups(component))

    @property
    def nf4_weights(self) -> int:
        """Weights that QLoRA keeps in 4 bits."""
        return sum(group.copies * group.weights for group in self.table if group.nf4)

    @property
    def language(self) -> int:
        """Parameters of decoder, embedding and head."""
        norms = self.num_layers("language") * self.decoder.norms
        return self.parameters("language") + norms + self.parameters("head") + self.language_other

    @property
    def vision_layer(self) -> int:
        """Parameters of one tower layer."""
        return sum(group.parameters for group in self.groups("vision")) + self.tower.norms

    @property
    def vision_outside(self) -> int:
        """Parameters of tower and projector outside the tower's layers."""
        return self.parameters("projector") + self.vision_other

    @property
    def vision(self) -> int:
        """Parameters of tower and projector, unused ones among them."""
        layers = self.num_layers("vision") + self.unused_vision_layers
        return layers * self.vision_layer + self.vision_outside

    @property
    def vision_unused(self) -> int:
        """Parameters of the vision part that no loss reaches."""
        return self.unused_vision_layers * self.vision_layer + self.unused_vision_other

    @property
    def vision_trained(self) -> int:
        """Parameters of the vision part that a loss reaches."""
        return self.vision - self.vision_unused

    @property
    def total(self) -> int:
        """Parameters of the checkpoint."""
        return self.language + self.vision
