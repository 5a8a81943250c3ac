"""Embeddings of text and images, and the decoder: what transformers calls the base model.

input_ids (-N marks a token of image N) + images -> embeddings -> decoder -> hidden states
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm

from phi3v_data.tokens.phi3v_geometry import TILE_SIZE, grid_num_tokens
from phi3v_train.device import constant_on
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.decoder import Phi3VDecoderLayer
from phi3v_train.models.phi3v.generation import CACHE_NAME
from phi3v_train.models.phi3v.packing import Layout, plan_layout
from phi3v_train.models.phi3v.prepared import ImagePlaces, Prepared, image_places
from phi3v_train.models.phi3v.rope import Phi3VRotary
from phi3v_train.models.phi3v.tiles import drop_padding, num_tiles, tiles_from_canvases
from phi3v_train.models.phi3v.tower import Shelf, TowerEmbeddings
from phi3v_train.models.phi3v.vision import ImageEmbedding, gather_index


class Phi3VPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped for mypy
    """Settings for transformers of both model classes."""

    config_class = Phi3VConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _no_split_modules: ClassVar[list[str]] = ["Phi3VDecoderLayer", "TowerLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, TowerEmbeddings):
            init.normal_(module.class_embedding, std=std)
        elif isinstance(module, ImageEmbedding):
            init.normal_(module.glb_GN, std=std)
            init.normal_(module.sub_GN, std=std)
        elif isinstance(module, Shelf):
            for name, tensor in module.named_buffers(recurse=False):
                if tensor.dim() > 1:
                    init.normal_(tensor, std=std)
                else:
                    init.constant_(tensor, 1.0 if name == "weight" else 0.0)


class Phi3VModel(Phi3VPreTrainedModel):
    """Embeddings of text and images, and the decoder."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.vision_embed_tokens = ImageEmbedding(config)
        self.layers = nn.ModuleList(Phi3VDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Phi3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Phi3VRotary(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the text embedding."""
        self.embed_tokens = value

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        canvases: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Features of images: `last_hidden_state` of the tower, `pooler_output` as inserted into the text.

        Images are given as in `forward`. The tower's features are (t, 576, c) over the tiles of all images, each
        image's global view first; `pooler_output` has an entry (tokens, hidden) per image.
        """
        if image_sizes is None:
            raise ValueError("images need image_sizes, their padded (height, width), as the image processor gives it")
        image_sizes = image_sizes.cpu()
        tiles = self._tiles(image_sizes, pixel_values, canvases)
        rows, features = self.vision_embed_tokens(tiles)
        sizes: list[list[int]] = image_sizes.tolist()
        index = constant_on(gather_index(sizes, range(len(sizes))), rows.device)
        counts = [grid_num_tokens(height // TILE_SIZE, width // TILE_SIZE) for height, width in sizes]
        output = BaseModelOutputWithPooling(
            last_hidden_state=features, pooler_output=torch.split(rows.index_select(0, index), counts)
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()

    def _tiles(self, image_sizes: Tensor, pixel_values: Tensor | None, canvases: Tensor | None) -> Tensor:
        """Tiles of images without padding (t, 3, 336, 336), where the tower is; where they are, if it is offloaded.

        `image_sizes` are on the CPU.
        """
        weight = self.vision_embed_tokens.img_processor.vision_model.embeddings.patch_embedding.weight
        device = None if weight.is_meta else weight.device
        if canvases is not None:
            return tiles_from_canvases(canvases.to(device=device), image_sizes, dtype=weight.dtype)
        if (
            pixel_values is None
            or int(num_tiles(image_sizes).max()) > pixel_values.shape[1]
            or len(image_sizes) != len(pixel_values)
        ):
            raise ValueError(
                f"pixel_values {tuple(pixel_values.shape) if pixel_values is not None else None} contain fewer tiles "
                f"than image_sizes {image_sizes.tolist()} require: both must come from the same processor call"
            )
        return drop_padding(pixel_values.to(device=device), image_sizes)

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        canvases: Tensor | None = None,
    ) -> Tensor:
        """Text and images as one `inputs_embeds` (rows, columns, hidden), for `forward` or `generate`."""
        rows, columns = input_ids.shape
        layout = plan_layout(rows, columns, input_ids.device, attention_mask=attention_mask)
        images = named_images(pixel_values, image_sizes, canvases)
        return self._embed(input_ids, find_places(input_ids, layout, images), images)

    def _embed(self, input_ids: Tensor, places: ImagePlaces | None, images: dict[str, Tensor]) -> Tensor:
        """Text embeddings with the images' features at their tokens, (rows, columns, hidden)."""
        embeds: Tensor = self.embed_tokens(input_ids.clamp_min(0))
        if places is None:
            return embeds
        tiles = self._tiles(places.sizes, images.get("pixel_values"), images.get("canvases"))
        rows, _ = self.vision_embed_tokens(tiles)
        placed = rows.index_select(0, constant_on(places.index, rows.device)).to(embeds.device, embeds.dtype)
        flat = embeds.flatten(0, 1).index_copy(0, constant_on(places.positions, embeds.device), placed)
        return flat.view_as(embeds)

    def _untouched_tower(self) -> Tensor | None:
        """Zero, computed by tower and projector, for a training batch without images; None if it is not needed.

        Data-parallel training requires every process to run the same modules: otherwise the others would wait for the
        gradients of a process without images (or, with sharded weights, for its shard of them).
        """
        parameters = list(self.vision_embed_tokens.parameters())
        trained = self.training and torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        sharded = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in parameters)
        if not trained and not sharded:
            return None
        embedding = self.vision_embed_tokens.img_processor.vision_model.embeddings.patch_embedding
        tile = torch.zeros((1, 3, TILE_SIZE, TILE_SIZE), device=embedding.weight.device, dtype=embedding.weight.dtype)
        zero: Tensor = self.vision_embed_tokens(tile)[0].sum() * 0.0
        return zero

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        canvases: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        layout: Layout | None = None,
        prepared: Prepared | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states (rows, columns, hidden) of a batch; see `Phi3VForConditionalGeneration.forward`.

        Other arguments that transformers passes to its base models (`cu_seq_lens_k`, `max_length_q`, `max_length_k`,
        ...) are accepted and ignored: `cu_seq_lens_q` is enough.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        rows, columns = given.shape[:2]
        packed = position_ids is not None or cu_seq_lens_q is not None
        cache = self._usable_cache(cache if cache is not None else past_key_values, use_cache, packed)
        num_cached = cache.get_seq_length() if cache is not None else None
        if layout is None:
            layout = plan_layout(
                rows,
                columns,
                given.device,
                attention_mask=attention_mask,
                position_ids=position_ids,
                bounds=cu_seq_lens_q,
                num_cached=num_cached,
            )
        images = named_images(pixel_values, image_sizes, canvases)
        if inputs_embeds is None:
            if cache is not None and columns == 1 and not images:
                inputs_embeds = self.embed_tokens(input_ids)
            else:
                places = (
                    prepared.images
                    if prepared is not None
                    else find_places(given, layout, images, resumed=bool(images and num_cached))
                )
                inputs_embeds = self._embed(given, places, images)
                if not images and cache is None and (zero := self._untouched_tower()) is not None:
                    inputs_embeds = inputs_embeds + zero.to(inputs_embeds.device, inputs_embeds.dtype)
        elif images:
            raise ValueError(
                "inputs_embeds have no image tokens to put images at: leave the images out and put them in with "
                "model.model.embed(input_ids, ...), or pass input_ids"
            )
        trained = self.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.layers.parameters())
        if self.gradient_checkpointing and trained and not inputs_embeds.requires_grad:
            # Reentrant checkpointing drops the gradients of a layer if none of its inputs requires a gradient.
            inputs_embeds = inputs_embeds.detach().requires_grad_(True)
        if output_attentions is None:
            output_attentions = bool(getattr(self.config, "output_attentions", False))
        if output_hidden_states is None:
            output_hidden_states = getattr(self.config, "output_hidden_states", False) or False
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions needs eager attention: {self.config._attn_implementation} keeps no weights; load "
                'the model with attn_implementation="eager"'
            )
        hidden, states, weights = self._decode(
            inputs_embeds, layout, attention_mask, cache, output_hidden_states, output_attentions
        )
        output = BaseModelOutputWithPast(last_hidden_state=hidden, hidden_states=states, attentions=weights)
        if cache is not None:
            output[CACHE_NAME] = cache
        return output if wants_dict(self.config, return_dict) else output.to_tuple()

    def _usable_cache(self, cache: Cache | None, use_cache: bool | None, packed: bool) -> Cache | None:
        """The cache to fill; None if it is not requested, or checkpointing would fill it twice.

        Rows that may be packed (positions are given) get one only on request.
        """
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return None
        if use_cache is None:
            use_cache = cache is not None or (bool(self.config.use_cache) and not self.training and not packed)
        if not use_cache:
            return None
        return cache if cache is not None else DynamicCache(config=self.config)

    def _decode(
        self,
        inputs_embeds: Tensor,
        layout: Layout,
        attention_mask: Tensor | None,
        cache: Cache | None,
        output_hidden_states: bool | int | Sequence[int],
        output_attentions: bool,
    ) -> tuple[Tensor, tuple[Tensor | None, ...] | None, tuple[Tensor, ...] | None]:
        """Run the layers; batches of unequal or packed samples are flattened to one row of real tokens."""
        segments = layout.segments
        hidden, positions = inputs_embeds, layout.position_ids
        lengths = layout.lengths.expand_as(positions)
        mask = None
        if segments is not None:
            hidden, positions, lengths = (segments.flatten(tensor) for tensor in (hidden, positions, lengths))
        else:
            ready = attention_mask is not None and attention_mask.dim() != 2
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden,
                attention_mask=attention_mask if cache is not None or ready else None,
                **{CACHE_NAME: cache},
            )
        position_embeddings = self.rotary_emb(positions, lengths, hidden.dtype)

        def restored(tensor: Tensor) -> Tensor:
            return tensor if segments is None else segments.restore(tensor, *inputs_embeds.shape[:2])

        kept = kept_states(output_hidden_states, len(self.layers) + 1)
        states: list[Tensor | None] = []
        attentions: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if kept:
                states.append(restored(hidden) if index in kept else None)
            hidden = layer(
                hidden,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                segments=segments,
                cache=cache,
                output_attentions=output_attentions,
            )
            if output_attentions:
                hidden, weights = hidden
                whole = segments.restore_weights(weights, *inputs_embeds.shape[:2]) if segments is not None else weights
                attentions.append(whole)
        hidden = restored(self.norm(hidden))
        if kept:
            states.append(hidden if len(self.layers) in kept else None)
        return hidden, tuple(states) if kept else None, tuple(attentions) if output_attentions else None


def find_places(
    input_ids: Tensor, layout: Layout, images: Mapping[str, Tensor], *, resumed: bool = False
) -> ImagePlaces | None:
    """Where the given images are in `input_ids`; None if there are none.

    Raises:
        ImageTokensError: image tokens and images do not match.
    """
    if images and "image_sizes" not in images:
        raise ValueError("images need image_sizes, their padded (height, width), as the image processor gives it")
    return image_places(input_ids, layout.sample_starts, images.get("image_sizes"), resumed=resumed)


def named_images(pixel_values: Tensor | None, image_sizes: Tensor | None, canvases: Tensor | None) -> dict[str, Tensor]:
    """The given image inputs; an empty tensor counts as none."""
    named = {"pixel_values": pixel_values, "image_sizes": image_sizes, "canvases": canvases}
    return {name: tensor for name, tensor in named.items() if tensor is not None and len(tensor)}


def kept_states(wanted: bool | int | Sequence[int], total: int) -> set[int]:
    """Which of `total` hidden states to keep: all, none, or those of one or several indices, which may be negative."""
    if isinstance(wanted, bool):
        return set(range(total)) if wanted else set()
    indices = [wanted] if isinstance(wanted, int) else wanted
    return {index % total for index in indices if -total <= index < total}


def wants_dict(config: Phi3VConfig, return_dict: bool | None) -> bool:
    """Whether outputs are named, by a call's `return_dict` or else the configuration's."""
    return bool(return_dict if return_dict is not None else getattr(config, "return_dict", True))
