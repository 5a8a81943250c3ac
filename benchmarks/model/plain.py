"""The straightforward model: transformers' Phi-3 and CLIP, every tile, every layer, every logit, padded rows.

It is correct and has none of our savings; each of them can be switched on alone. Its weights come from one of our
models, so that losses can be compared.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiles import num_tiles

TILE = 336


@dataclass(frozen=True)
class Levers:
    """The savings that are switched on."""

    labelled_logits: bool = False
    no_zero_tiles: bool = False
    no_last_layer: bool = False


class PlainModel(nn.Module):
    """Tower, projector and decoder; a batch of right-padded rows."""

    def __init__(self, ours: Phi3VForConditionalGeneration, levers: Levers) -> None:
        super().__init__()
        config, self.levers = ours.config, levers
        settings = dict(config.vision_settings)
        self.num_layers = settings["num_hidden_layers"]
        rope = {key: config.rope_parameters[key] for key in ("rope_theta", "rope_type", "short_factor", "long_factor")}
        rope |= {"original_max_position_embeddings": config.original_max_position_embeddings}
        rope |= {"factor": config.max_position_embeddings / config.original_max_position_embeddings}
        names = [
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "max_position_embeddings", "original_max_position_embeddings", "pad_token_id"),
        ]
        decoder = Phi3Config(**{name: getattr(config, name) for name in names}, rope_parameters=rope)
        dtype = ours.lm_head.weight.dtype
        self.decoder = Phi3ForCausalLM._from_config(decoder, attn_implementation="sdpa", dtype=dtype)
        used = self.num_layers - levers.no_last_layer
        tower = CLIPVisionConfig(**(settings | {"num_hidden_layers": used}))
        self.tower = CLIPVisionModel._from_config(tower, attn_implementation="sdpa", dtype=dtype)
        self.projector = nn.Sequential(
            nn.Linear(4 * settings["hidden_size"], config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        ).to(dtype)
        self.separators = nn.ParameterList([torch.zeros(4 * settings["hidden_size"], dtype=dtype) for _ in range(2)])
        self._copy(ours.state_dict())

    def _copy(self, state: dict[str, Tensor]) -> None:
        vision = "model.vision_embed_tokens."
        tower = f"{vision}img_processor.vision_model."
        self.tower.load_state_dict(
            {name.removeprefix(tower): value for name, value in state.items() if name.startswith(tower)}, strict=False
        )
        self.decoder.load_state_dict({name: value for name, value in state.items() if not name.startswith(vision)})
        projector = f"{vision}img_projection."
        self.projector.load_state_dict(
            {name.removeprefix(projector): value for name, value in state.items() if name.startswith(projector)}
        )
        with torch.no_grad():
            self.separators[0].copy_(state[f"{vision}sub_GN"].flatten())
            self.separators[1].copy_(state[f"{vision}glb_GN"].flatten())

    def image_embeddings(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        """The images' token embeddings, end to end."""
        num_images, max_tiles = pixel_values.shape[:2]
        tiles = pixel_values.flatten(0, 1)
        if self.levers.no_zero_tiles:
            places = torch.arange(max_tiles, device=tiles.device)[None] < num_tiles(image_sizes)[:, None]
            found = self._features(tiles[places.flatten()])
            features = found.new_zeros((num_images, max_tiles, *found.shape[1:]))
            features[places] = found
        else:
            found = self._features(tiles)
            features = found.view(num_images, max_tiles, *found.shape[1:])
        return torch.cat([self._sequence(f, size) for f, size in zip(features, image_sizes.tolist(), strict=True)])

    def _features(self, tiles: Tensor) -> Tensor:
        layer = -1 if self.levers.no_last_layer else -2
        hidden: Tensor = self.tower(tiles, output_hidden_states=True).hidden_states[layer]
        return hidden[:, 1:]

    def _sequence(self, features: Tensor, size: list[int]) -> Tensor:
        rows, cols = size[0] // TILE, size[1] // TILE
        width = features.shape[-1]
        merged = features.view(len(features), 12, 2, 12, 2, width).permute(0, 1, 3, 2, 4, 5)
        merged = merged.reshape(len(features), 12, 12, 4 * width)
        grid = (
            merged[1 : 1 + rows * cols].view(rows, cols, 12, 12, -1).transpose(1, 2).reshape(rows * 12, cols * 12, -1)
        )
        blocks = [
            torch.cat((block, self.separators[0].expand(len(block), 1, -1)), dim=1).flatten(0, 1)
            for block in (grid, merged[0])
        ]
        projected: Tensor = self.projector(torch.cat((blocks[0], self.separators[1][None], blocks[1])))
        return projected

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The mean loss over labelled tokens."""
        embeds = self.decoder.model.embed_tokens(input_ids.clamp_min(0))
        if pixel_values is not None and image_sizes is not None:
            placed = self.image_embeddings(pixel_values, image_sizes)
            embeds = embeds.masked_scatter((input_ids < 0)[..., None], placed.to(embeds.dtype))
        hidden = self.decoder.model(
            inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        targets = labels[:, 1:].flatten()
        hidden = hidden[:, :-1].flatten(0, 1)
        if self.levers.labelled_logits:
            hidden, targets = hidden[targets >= 0], targets[targets >= 0]
        return functional.cross_entropy(self.decoder.lm_head(hidden).float(), targets)
