"""Support of `generate` for this model: images, the rope switch, beams and stop ids.

When a sample first exceeds `original_max_position_embeddings`, its cached keys were rotated by the short factors and
are no longer correct. The cache is then cleared and the whole batch is computed again, including images, each sample
with the factors of its own length: the others get the same keys as before. So cached and uncached, batched and single
generation agree, as in the released code of Phi-3.5-vision for single samples.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from phi3v_data.files import load_json
from phi3v_data.tokens.phi3v import CHAT

CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""Name of the cache in model inputs and outputs in this version of transformers."""

OFFICIAL_STOP_IDS = [32000, 32001, 32007]
OFFICIAL_VOCAB_SIZE = 32064

IMAGE_INPUTS = ("pixel_values", "canvases", "image_sizes")


class TextLogitsProcessors(LogitsProcessorList):  # type: ignore[misc]  # transformers is untyped for mypy
    """Processors that see image tokens as `<unk>`: several of transformers' own use ids as an index."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Scores (b, vocabulary) of the next token."""
        processed: Tensor = super().__call__(input_ids.clamp_min(0), scores, **kwargs)
        return processed


class Phi3VGeneration(GenerationMixin):  # type: ignore[misc]  # transformers is untyped for mypy
    """`generate` for a model whose cache may have to be rebuilt, with any number of images per row."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of the next step; images only if their tokens are among them."""
        images = {name: kwargs.pop(name) for name in IMAGE_INPUTS if name in kwargs}
        cache: Cache | None = kwargs.get(CACHE_NAME)
        from_start = bool(is_first_iteration) or not kwargs.get("use_cache", True) or cache is None
        if cache is not None and self._passes_rope_switch(input_ids, attention_mask, cache, inputs_embeds):
            kwargs[CACHE_NAME] = self._emptied(cache)
            next_sequence_length, from_start = None, True
        if inputs_embeds is not None and from_start and attention_mask is not None:
            # A prompt in embeddings is computed with the tokens generated after it, also when the cache is rebuilt.
            added = attention_mask.shape[-1] - inputs_embeds.shape[1]
            if added > 0:
                behind = self.get_input_embeddings()(input_ids[:, -added:])
                inputs_embeds = torch.cat((inputs_embeds, behind), dim=1)
            is_first_iteration = True
        kwargs.pop("position_ids", None)  # derived from the mask at every step
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        given = {name: value for name, value in images.items() if isinstance(value, Tensor)}
        ids: Tensor | None = inputs.get("input_ids")
        # After the first step, several tokens at once come from a prompt on a cache or from an assistant model.
        if given and (from_start or (ids is not None and ids.shape[1] > 1)):
            if ids is not None and "image_sizes" in given:
                given = images_within(given, input_ids, ids)
            inputs |= {name: value if ids is None else value.to(ids.device) for name, value in given.items()}
        return inputs

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """Keep the mask per token, also for static caches: the model reads lengths and positions from it."""
        return attention_mask

    def _passes_rope_switch(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: Cache, embeds: Tensor | None
    ) -> bool:
        """Whether a sample with keys in the cache is about to become longer than the pretrained context."""
        original = int(self.config.original_max_position_embeddings)
        total = attention_mask.shape[-1] if attention_mask is not None else input_ids.shape[-1]
        if total <= original or (attention_mask is None and int(cache.get_seq_length()) > original):
            return False
        num_cached = int(cache.get_seq_length())
        if num_cached == 0:
            return False
        if attention_mask is None:
            passes = True
        else:
            before, now = attention_mask[:, :num_cached].sum(-1), attention_mask.sum(-1)
            passes = bool(((before <= original) & (now > original)).any())
        if passes and embeds is None and input_ids.shape[-1] < total:
            raise ValueError(
                f"this step exceeds {original} tokens, where the long-context rope factors begin and the cache must be "
                "rebuilt: pass the whole conversation as input_ids, not only its new part"
            )
        return passes

    def _emptied(self, cache: Cache) -> Cache:
        """The same cache without content, or a new dynamic one if this version of transformers cannot clear it."""
        cache.reset()
        return cache if int(cache.get_seq_length()) == 0 else DynamicCache(config=self.config)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> TextLogitsProcessors:
        return TextLogitsProcessors(super()._get_logits_processor(*args, **kwargs))

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat the inputs for beams and several answers: the images of a sample are repeated together.

        A prompt in embeddings gets a mask, which gives its length.
        """
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        images = {name: kwargs.pop(name) for name in IMAGE_INPUTS if kwargs.get(name) is not None}
        if images and expand_size > 1 and input_ids is not None:
            kwargs.update(repeat_images(images, images_per_row(input_ids), expand_size))
            images = {name: kwargs.pop(name) for name in images}
        expanded_ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return expanded_ids, {**expanded, **images}


def images_per_row(input_ids: Tensor) -> list[int]:
    """Number of images in the image tokens of each row."""
    return [int((-row[row < 0]).unique().numel()) for row in input_ids]


def images_within(images: dict[str, Tensor], whole: Tensor, part: Tensor) -> dict[str, Tensor]:
    """Image inputs of the rows `whole` whose tokens are in their ends `part`: the others are already in the cache."""
    if part.shape[1] == whole.shape[1]:
        return images
    order: list[int] = []
    begin = 0
    for count, kept in zip(images_per_row(whole), images_per_row(part), strict=True):
        begin += count
        order += range(begin - kept, begin)
    return chosen_images(images, order) if order else {}


def repeat_images(images: dict[str, Tensor], per_row: list[int], times: int) -> dict[str, Tensor]:
    """Image inputs of rows repeated `times` each: rows a, b with images 1 | 2, 3 -> 1 1 | 2 3 2 3."""
    order: list[int] = []
    begin = 0
    for count in per_row:
        order += list(range(begin, begin + count)) * times
        begin += count
    return chosen_images(images, order)


def chosen_images(images: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Image inputs of the images with these numbers, in this order."""
    sizes = images["image_sizes"]
    chosen = {"image_sizes": sizes[order]}
    if "pixel_values" in images:
        chosen["pixel_values"] = images["pixel_values"][order]
    if "canvases" in images:
        pieces = torch.split(images["canvases"], (sizes[:, 0] * sizes[:, 1] * 3).tolist())
        chosen["canvases"] = torch.cat([pieces[index] for index in order])
    return chosen


def stop_ids_of(tokenizer: Any) -> list[int]:
    """Ids at which generation stops, by the names of the tokens, for any vocabulary of this kind."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return [vocabulary[token] for token in CHAT.stop_strings if token in vocabulary]


def stop_ids_in(directory: str | Path) -> list[int]:
    """The same from a directory's tokenizer.json; empty if there is none."""
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        return []
    added: Iterable[dict[str, Any]] = load_json(path).get("added_tokens", [])
    vocabulary = {token["content"]: int(token["id"]) for token in added}
    return [vocabulary[token] for token in CHAT.stop_strings if token in vocabulary]
