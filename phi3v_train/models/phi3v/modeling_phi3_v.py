"""Phi-3-vision and Phi-3.5-vision on current transformers.

    input_ids (-N marks a token of picture N) + pictures -> embeddings -> decoder -> logits, or a loss without them

Differences from the original code, and why, are told in docs/model.md. The parts: `vision` (tower, projector and
where image tokens stand), `rope`, `packing` (which tokens see which), `decoder`, `generation`.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm

from phi3v_data.media.geometry import TILE_SIZE
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.decoder import Phi3VDecoderLayer
from phi3v_train.models.phi3v.generation import (
    CACHE_NAME,
    OFFICIAL_STOP_IDS,
    OFFICIAL_VOCAB_SIZE,
    Phi3VGeneration,
    stop_ids_in,
    stop_ids_of,
)
from phi3v_train.models.phi3v.packing import Layout, plan_layout, shifted_labels
from phi3v_train.models.phi3v.rope import Phi3VRotary
from phi3v_train.models.phi3v.tiles import drop_padding, num_tiles, tiles_from_canvases
from phi3v_train.models.phi3v.tower import Shelf, TowerEmbeddings
from phi3v_train.models.phi3v.vision import ImageEmbedding, ImageTokensError, gather_index, match_images


class Phi3VPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped for mypy
    """What transformers should know of both model classes."""

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
    """Embeddings of text and pictures, and the decoder."""

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
        self, image_sizes: Tensor, pixel_values: Tensor | None = None, canvases: Tensor | None = None
    ) -> Tensor:
        """Both separators and 144 rows a tile, projected: (2 + t * 144, hidden); see `vision.gather_index`.

        Pictures come as `pixel_values` (n, tiles, 3, 336, 336), of which all-zero padding tiles are left out, or as
        `canvases`, a flat uint8 tensor (see `tiles`); `image_sizes` (n, 2) are their padded (H, W).
        """
        weight = self.vision_embed_tokens.img_processor.vision_model.embeddings.patch_embedding.weight
        if canvases is not None:
            tiles = tiles_from_canvases(canvases.to(weight.device), image_sizes, dtype=weight.dtype)
        else:
            if (
                pixel_values is None
                or int(num_tiles(image_sizes).max()) > pixel_values.shape[1]
                or len(image_sizes) != len(pixel_values)
            ):
                raise ValueError(
                    f"pixel_values {tuple(pixel_values.shape) if pixel_values is not None else None} hold fewer tiles "
                    f"than image_sizes {image_sizes.tolist()} say: both must come from the same processor call"
                )
            tiles = drop_padding(pixel_values.to(weight.device), image_sizes)
        features: Tensor = self.vision_embed_tokens(tiles)
        return features

    def _embed(self, input_ids: Tensor, layout: Layout, resumed: bool, pictures: dict[str, Tensor]) -> Tensor:
        """Text embeddings with the pictures' features at their tokens, (rows, columns, hidden)."""
        embeds: Tensor = self.embed_tokens(input_ids.clamp_min(0))
        positions = (input_ids < 0).flatten().nonzero().squeeze(1)
        if not pictures:
            if len(positions):
                raise ImageTokensError("input_ids hold image tokens, but no pictures were handed over")
            return embeds
        if "image_sizes" not in pictures:
            raise ValueError("pictures need image_sizes, their padded (height, width), as the image processor gives it")
        sizes: list[list[int]] = pictures["image_sizes"].tolist()
        tags = input_ids.flatten()[positions].cpu()
        order = match_images(tags, positions.cpu(), layout.sample_starts, sizes, resumed)
        features = self.get_image_features(**pictures)
        placed = features.index_select(0, gather_index(sizes, order).to(features.device))
        flat = embeds.flatten(0, 1).index_copy(0, positions, placed.to(embeds.device, embeds.dtype))
        return flat.view_as(embeds)

    def _untouched_tower(self) -> Tensor | None:
        """Zero, through tower and projector, for a training batch without pictures; None where nobody waits for it.

        Data-parallel training needs every process to run the same modules: one whose batch has no picture would
        leave the others waiting for its gradients (or, with sharded weights, for its part of them).
        """
        parameters = list(self.vision_embed_tokens.parameters())
        trained = self.training and torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        sharded = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in parameters)
        if not trained and not sharded:
            return None
        embedding = self.vision_embed_tokens.img_processor.vision_model.embeddings.patch_embedding
        tile = torch.zeros((1, 3, TILE_SIZE, TILE_SIZE), device=embedding.weight.device, dtype=embedding.weight.dtype)
        zero: Tensor = self.vision_embed_tokens(tile).sum() * 0.0
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
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """Hidden states (rows, columns, hidden) of a batch; see `Phi3VForConditionalGeneration.forward`."""
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
        if inputs_embeds is None:
            named = {"pixel_values": pixel_values, "image_sizes": image_sizes, "canvases": canvases}
            pictures = {name: tensor for name, tensor in named.items() if tensor is not None and len(tensor)}
            if cache is not None and columns == 1 and not pictures:
                inputs_embeds = self.embed_tokens(input_ids)
            else:
                resumed = bool(num_cached) if pictures and num_cached is not None else False
                inputs_embeds = self._embed(given, layout, resumed, pictures)
                if not pictures and cache is None and (zero := self._untouched_tower()) is not None:
                    inputs_embeds = inputs_embeds + zero.to(inputs_embeds.device, inputs_embeds.dtype)
        trained = self.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.layers.parameters())
        if self.gradient_checkpointing and trained and not inputs_embeds.requires_grad:
            # Reentrant checkpointing drops the gradients of a layer none of whose inputs asks for one.
            inputs_embeds = inputs_embeds.detach().requires_grad_(True)
        hidden, states = self._decode(inputs_embeds, layout, attention_mask, cache, output_hidden_states)
        output = BaseModelOutputWithPast(last_hidden_state=hidden, hidden_states=states)
        if cache is not None:
            output[CACHE_NAME] = cache
        return output

    def _usable_cache(self, cache: Cache | None, use_cache: bool | None, packed: bool) -> Cache | None:
        """The cache to fill, None where none is wanted or checkpointing would fill it twice.

        Rows that may be packed (positions are given) get one only when asked for.
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
        output_hidden_states: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Run the layers: batches of unequal or packed samples as one row of real tokens."""
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

        states: list[Tensor] = []
        for layer in self.layers:
            if output_hidden_states:
                states.append(restored(hidden))
            hidden = layer(
                hidden,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                segments=segments,
                cache=cache,
            )
        hidden = restored(self.norm(hidden))
        return hidden, (*states, hidden) if output_hidden_states else None


# GenerationMixin is named once more because transformers looks for it among the direct bases.
class Phi3VForConditionalGeneration(Phi3VPreTrainedModel, Phi3VGeneration, GenerationMixin):  # type: ignore[misc]
    """The whole model; `Phi3VForCausalLM` in config.json, as in the official files."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        # Buffers never trained: DistributedDataParallel need not send them round at every step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        if config.vocab_size == OFFICIAL_VOCAB_SIZE:
            self.set_stop_ids(OFFICIAL_STOP_IDS)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any) -> Self:
        """As every transformers model; stop ids come from generation_config.json, else from the tokenizer's names."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model: Self = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(model.generation_config.eos_token_id, list):
            stop_ids = OFFICIAL_STOP_IDS if model.config.vocab_size == OFFICIAL_VOCAB_SIZE else []
            if not stop_ids and pretrained_model_name_or_path is not None:
                stop_ids = stop_ids_in(pretrained_model_name_or_path)
            model.set_stop_ids(stop_ids)
        return loaded  # type: ignore[no-any-return]  # the pair that output_loading_info asks for, or the model

    def set_stop_ids(self, stop: Any) -> None:
        """Let generation stop at these ids, or at a tokenizer's `<|end|>`, `<|assistant|>` and `<|endoftext|>`."""
        stop_ids = stop if isinstance(stop, list) else stop_ids_of(stop)
        if stop_ids:
            settings: dict[str, Any] = self.generation_config.to_dict()
            settings.pop("_from_model_config", None)
            self.generation_config: Any = GenerationConfig.from_dict(settings | {"eos_token_id": list(stop_ids)})

    def get_input_embeddings(self) -> nn.Module:
        """The text embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the text embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        canvases: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cu_seq_lens_q: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, a loss, or both.

        `input_ids` (rows, columns): text ids, and -N for each token of picture N of its sample. Pictures: either
        `pixel_values` (n, tiles, 3, 336, 336) or `canvases` (flat uint8), with `image_sizes` (n, 2), in the order of
        the samples. `attention_mask` (rows, columns): 0 at padding. `position_ids` (rows, columns) that begin anew, or
        `cu_seq_lens_q` (n + 1,) for one row, mean several samples a row; they do not see each other.

        `labels` (rows, columns), not shifted, negative where there is no loss. The loss is the mean over labelled
        tokens, or their sum over `num_items_in_batch`; 0 for a batch without labels. In training, logits are then
        computed at labelled tokens only and not returned (`return_logits=True` returns all).
        """
        if output_attentions:
            raise ValueError("attention weights are not kept: output_attentions is not supported by this model")
        given = input_ids if input_ids is not None else inputs_embeds
        layout = None
        if labels is not None and given is not None:
            if past_key_values is not None or cache is not None:
                raise ValueError("a loss on top of a cache is not defined: pass labels without past_key_values")
            use_cache = False
            layout = plan_layout(
                given.shape[0],
                given.shape[1],
                given.device,
                attention_mask=attention_mask,
                position_ids=position_ids,
                bounds=cu_seq_lens_q,
            )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            canvases=canvases,
            past_key_values=past_key_values,
            cache=cache,
            use_cache=use_cache,
            cu_seq_lens_q=cu_seq_lens_q,
            layout=layout,
            output_hidden_states=output_hidden_states,
        )
        hidden = outputs.last_hidden_state
        loss = self._loss(hidden, labels, layout, num_items_in_batch) if labels is not None and layout else None
        logits = None
        if return_logits if return_logits is not None else labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        if CACHE_NAME in outputs:
            output[CACHE_NAME] = outputs[CACHE_NAME]
        wanted = return_dict if return_dict is not None else getattr(self.config, "return_dict", True)
        return output if wanted else output.to_tuple()

    def _loss(self, hidden: Tensor, labels: Tensor, layout: Layout, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Cross-entropy in fp32 over labelled tokens; the head sees no other token."""
        targets = shifted_labels(labels.to(hidden.device), layout).flatten()
        labelled = (targets >= 0).nonzero().squeeze(1)
        logits = self.lm_head(hidden.flatten(0, 1).index_select(0, labelled)).float()
        if not len(labelled):
            nothing: Tensor = logits.sum()
            return nothing
        # Summed in fp64: in fp32 the last digits of a long batch's sum depend on how the batch is divided.
        total = functional.cross_entropy(logits, targets[labelled], reduction="none").double().sum()
        count = len(labelled) if num_items_in_batch is None else num_items_in_batch
        return (total / torch.as_tensor(count, device=total.device)).float()
