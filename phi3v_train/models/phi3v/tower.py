"""The CLIP vision tower, with the official key names, and only the layers whose output is used.

The features are the hidden states before the last layer, so that layer and the final norm do not affect the loss. They
are not built: their tensors are kept as buffers (`Shelf`), loaded and saved under their official names, and ignored by
optimizers, gradients, sharding and adapters.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig


class Shelf(nn.Module):
    """Tensors of a module that is not run: parameters as buffers, submodules as shelves, with the same names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, parameter in module.named_parameters(recurse=False):
            self.register_buffer(name, parameter.detach())
        for name, part in module.named_children():
            if next(part.parameters(), None) is not None:
                self.add_module(name, Shelf(part))


class TowerEmbeddings(nn.Module):
    """Patches, class token and positions: (n, 3, 336, 336) -> (n, 577, c)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width, patch = settings["hidden_size"], settings["patch_size"]
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((settings["image_size"] // patch) ** 2 + 1, width)

    def forward(self, tiles: Tensor) -> Tensor:
        patches = self.patch_embedding(tiles).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(tiles), 1, -1)
        positions = self.position_embedding(torch.arange(patches.shape[1] + 1, device=patches.device))
        embedded: Tensor = torch.cat((first, patches), dim=1) + positions.to(patches.dtype)
        return embedded


class TowerAttention(nn.Module):
    """Full attention among the tokens of a tile."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        width = settings["hidden_size"]
        self.num_heads = settings["num_attention_heads"]
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (
            projection(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class TowerMLP(nn.Module):
    """Two linear layers around the activation (quick_gelu in CLIP)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.activation = ACT2FN[settings["hidden_act"]]
        self.fc1 = nn.Linear(settings["hidden_size"], settings["intermediate_size"])
        self.fc2 = nn.Linear(settings["intermediate_size"], settings["hidden_size"])

    def forward(self, hidden: Tensor) -> Tensor:
        widened: Tensor = self.activation(self.fc1(hidden))
        narrowed: Tensor = self.fc2(widened)
        return narrowed


class TowerLayer(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers is untyped for mypy
    """Pre-norm transformer layer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.self_attn = TowerAttention(settings)
        self.layer_norm1 = nn.LayerNorm(settings["hidden_size"], eps=settings["layer_norm_eps"])
        self.mlp = TowerMLP(settings)
        self.layer_norm2 = nn.LayerNorm(settings["hidden_size"], eps=settings["layer_norm_eps"])

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        narrowed: Tensor = self.mlp(self.layer_norm2(hidden))
        return hidden + narrowed


class TowerEncoder(nn.Module):
    """The layers: built up to the last one used; the rest are shelves."""

    def __init__(self, settings: dict[str, Any], num_used: int) -> None:
        super().__init__()
        self.num_used = num_used
        layers = (TowerLayer(settings) for _ in range(settings["num_hidden_layers"]))
        self.layers = nn.ModuleList(layer if index < num_used else Shelf(layer) for index, layer in enumerate(layers))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers[: self.num_used]:
            hidden = layer(hidden)
        return hidden


class VisionTransformer(nn.Module):
    """Tiles to patch features; `pre_layrnorm` is spelled as in the checkpoints."""

    def __init__(self, settings: dict[str, Any], num_used: int) -> None:
        super().__init__()
        self.embeddings = TowerEmbeddings(settings)
        self.pre_layrnorm = nn.LayerNorm(settings["hidden_size"], eps=settings["layer_norm_eps"])
        self.encoder = TowerEncoder(settings, num_used)
        self.post_layernorm = Shelf(nn.LayerNorm(settings["hidden_size"], eps=settings["layer_norm_eps"]))

    def forward(self, tiles: Tensor) -> Tensor:
        hidden = self.pre_layrnorm(self.embeddings(tiles))
        trained = self.training and torch.is_grad_enabled()
        if trained and not hidden.requires_grad and any(p.requires_grad for p in self.encoder.parameters()):
            # Reentrant checkpointing drops the gradients of a layer if none of its inputs requires a gradient.
            hidden.requires_grad_(True)
        encoded: Tensor = self.encoder(hidden)
        return encoded[:, 1:]


class VisionTower(nn.Module):
    """(n, 3, 336, 336) normalised tiles -> (n, 576, c) patch features, without the class token."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config.vision_settings, config.num_vision_layers_used)

    def forward(self, tiles: Tensor) -> Tensor:
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features: Tensor = self.vision_model(tiles.to(self.vision_model.embeddings.patch_embedding.weight.dtype))
            return features
