"""Conversations and images as the inputs of transformers' models.

The text of a conversation is tokenized as a whole, every run of image tokens written as one, and cut at generation
points afterwards: the ids are those that the model's own processor makes of the same text. Where a token would reach
over a generation point, or the text before it alone has other tokens, the text is tokenized in pieces, so that a prompt
is always the beginning of its sample.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from phi3v_data.schema import Turn
from phi3v_data.tokens.family import TokenFamily
from phi3v_train.models.huggingface.texts import Texts
from phi3v_train.models.renderer import (
    AnswerIds,
    ImageArrays,
    ImageLayout,
    PromptError,
    Renderer,
    TurnIds,
    refuse_tags,
)


class HubRenderer(Renderer):
    """Encodes with a tokenizer and an image processor of transformers.

    Args:
        tokens: the family, configured for the model's processor.
        processor: `tokenizer` and `image_processor`.
        texts: writes conversations.
    """

    def __init__(self, tokens: TokenFamily, processor: Any, texts: Texts) -> None:
        super().__init__(tokens, processor)
        self.texts = texts
        self.image_token = tokens.chat.image_token or tokens.chat.image_tag

    @cached_property
    def image_token_id(self) -> int:
        """Id of every image token."""
        return int(self.tokenizer.convert_tokens_to_ids(self.image_token))

    def layouts(self, sizes: Sequence[tuple[int, int]], budget: int | None) -> list[ImageLayout]:
        """See `Renderer.layouts`."""
        several = len(sizes) > 1 and self.several_differ
        return [self.layout(width, height, budget, several) for width, height in sizes]

    def image_layout(self, width: int, height: int, budget: int | None) -> ImageLayout:
        """Layout of an image that is alone in its sample."""
        return self.layout(width, height, budget, False)

    def layout(self, width: int, height: int, budget: int | None, several: bool) -> ImageLayout:
        """Layout of an image; `several`: its sample has several."""
        return hub_layout(self.tokens, width, height, budget, several)

    def conversation(
        self, turns: Sequence[Turn], answers: Sequence[str], layouts: Sequence[ImageLayout], *, system: str = ""
    ) -> list[TurnIds]:
        """See `Renderer.conversation`."""
        for index, turn in enumerate(turns):
            try:
                refuse_tags(self.tokens, turn.user)
            except PromptError as error:
                error.turn = index
                raise
        segments = self.texts(turns, answers, system)
        images = [layout.inside for layout in layouts]
        runs = [count for image in images for _, count in image.parts]
        owners = [number for number, image in enumerate(images, 1) for _ in image.parts]
        tag = self.tokens.chat.image_tag
        pieces: list[str] = []
        used = 0
        for index, segment in enumerate(segments):
            parts = segment.prompt.split(tag)
            wanted = len(turns[index].images)
            if len(parts) - 1 != wanted:
                mismatch = PromptError(f"its text has {len(parts) - 1} image tags {tag} for {wanted} images")
                mismatch.turn = index
                raise mismatch
            prompt = parts[0]
            for part in parts[1:]:
                prompt += "".join(text + self.image_token for text, _ in images[used].parts) + images[used].end + part
                used += 1
            answer = segment.answer
            pieces.append(prompt)
            if answer is not None:
                pieces += [answer[: segment.trained], answer[segment.trained :]]
        ids = iter(self.expanded(self.piece_ids(pieces), runs, owners))
        start = self.start_ids if not pieces[0].startswith(self.tokenizer.bos_token or "\0") else []
        result = []
        for segment in segments:
            prompt_ids = start + next(ids)
            start = []
            if segment.answer is None:
                result.append(TurnIds(prompt_ids, None))
                continue
            trained, rest = next(ids), next(ids)
            whole = trained + rest
            result.append(TurnIds(prompt_ids, AnswerIds(whole, len(whole), len(trained), len(trained))))
        return result

    @cached_property
    def start_ids(self) -> list[int]:
        """The BOS id where the tokenizer adds one to a text; not used where a template has written it."""
        ids: list[int] = self.tokenizer("", verbose=False)["input_ids"]
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_token_id else []

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of added tokens, at which a tokenizer cuts a text before anything else."""
        return frozenset(self.tokenizer.get_added_vocab().values())

    def piece_ids(self, pieces: Sequence[str]) -> list[list[int]]:
        """Token ids of adjacent pieces of one text: prompt, trained part of the answer, its rest, prompt, ..."""
        if not self.tokenizer.is_fast:
            return [self.text_ids(piece) for piece in pieces]
        text = "".join(pieces)
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        result: list[list[int]] = []
        token, end = 0, 0
        for index, piece in enumerate(pieces):
            end += len(piece)
            first = token
            while token < len(ids) and offsets[token][1] <= end and offsets[token][0] < end:
                token += 1
            if token < len(ids) and offsets[token][0] < end:
                return [self.text_ids(each) for each in pieces]
            if index % 3 == 0 and end < len(text):  # before a generation point
                cut = next((each for each in range(token - 1, -1, -1) if ids[each] in self.special_ids), 0)
                if self.text_ids(text[offsets[cut][0] if token else 0 : end]) != ids[cut:token]:
                    return [self.text_ids(each) for each in pieces]
            result.append(ids[first:token])
        result[-1] += ids[token:]
        return result

    def expanded(self, pieces: Sequence[Sequence[int]], runs: Sequence[int], owners: Sequence[int]) -> list[list[int]]:
        """Ids with every image token replaced by its run: image n as a run of -n.

        Raises:
            PromptError: there are more or fewer image tokens than there should be.
        """
        found = 0
        result = []
        for piece in pieces:
            ids: list[int] = []
            for each in piece:
                if each != self.image_token_id:
                    ids.append(each)
                    continue
                if found < len(runs):
                    ids += [-owners[found]] * runs[found]
                found += 1
            result.append(ids)
        if found != len(runs):
            raise PromptError(
                f"the text contains {self.image_token}, which stands for a part of an image: take it out of the text"
            )
        return result

    def packed_inputs(self, lengths: Sequence[int]) -> dict[str, NDArray[Any]]:
        """`samples`: tokens of each sample, for attention within them."""
        return {"samples": np.array(lengths, np.int64)}

    def image_arrays(self, image: Image, layout: ImageLayout, budget: int | None) -> ImageArrays:
        """The image processor's arrays of one image, those that say nothing about pixels among them."""
        arrays = self.image_processor(images=[image.convert("RGB")], return_tensors="np", **self.image_options)
        return {name: np.asarray(arrays[name]) for name in self.model_inputs}

    model_inputs: tuple[str, ...] = ("pixel_values",)
    """Outputs of the image processor that the model takes."""

    image_options: ClassVar[Mapping[str, Any]] = {}
    """Options that the family's whole processor gives its image processor, whatever the image processor's file says."""

    def collate_images(self, images: Sequence[ImageArrays]) -> dict[str, NDArray[Any]]:
        """All arrays, one image after another along the first axis."""
        return {name: np.concatenate([image[name] for image in images]) for name in images[0]}

    def model_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Runs of -n as image tokens."""
        return np.where(ids < 0, self.image_token_id, ids)


@lru_cache(maxsize=1 << 14)
def hub_layout(tokens: TokenFamily, width: int, height: int, budget: int | None, several: bool) -> ImageLayout:
    """Layout of an image, remembered by size."""
    count = tokens.several_image_tokens if several else tokens.image_tokens
    inside = tokens.image_text(width, height, budget, several=several)
    tiles = tokens.image_tiles(width, height, budget, several=several)
    words = tokens.image_words(width, height, budget)
    return ImageLayout(count(width, height, budget), tiles, text=words, inside=inside)
