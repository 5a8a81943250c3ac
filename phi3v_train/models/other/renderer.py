"""Encoding with any processor of transformers: it says itself what an image becomes."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from phi3v_data.tokens.family import ImageShapeError, ImageText
from phi3v_train.models.huggingface.processor import load_parts
from phi3v_train.models.huggingface.renderer import HubRenderer
from phi3v_train.models.huggingface.texts import TemplateTexts
from phi3v_train.models.other.processor import OtherProcessor, blank, make_whole
from phi3v_train.models.renderer import ImageArrays, ImageLayout

UNUSED = ("num_patches", "num_crops", "rows", "cols", "original_sizes")
"""Outputs of image processors that no model takes."""


class OtherRenderer(HubRenderer):
    """Measures images by preparing blank ones of their sizes, once for each size."""

    def __init__(self, processor: OtherProcessor) -> None:
        texts = TemplateTexts(processor.tokenizer, processor.chat_template)
        super().__init__(processor.tokens, processor, texts)
        self.directory = processor.directory
        self._whole: Any = processor.whole
        self.type_inputs = processor.type_inputs
        self.known: dict[tuple[int, int], ImageLayout] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the whole processor, whose class is made at run time."""
        return {**self.__dict__, "_whole": None}

    @property
    def whole(self) -> Any:
        """The whole processor, made again in another process."""
        if self._whole is None:
            assert self.directory is not None
            self._whole = make_whole(self.directory, load_parts(self.directory))
        return self._whole

    def layout(self, width: int, height: int, budget: int | None, several: bool) -> ImageLayout:
        """See `HubRenderer.layout`."""
        if (width, height) not in self.known:
            try:
                inputs = self.image_processor(images=[blank(width, height)], return_tensors="np")
                text: str = self.whole.replace_image_token(inputs, 0)
            except (ValueError, ZeroDivisionError) as error:
                raise ImageShapeError(f"an image of {width} x {height} pixels: {str(error)[:80]}") from None
            parts: list[tuple[str, int]] = []
            end = 0
            for run in re.finditer(rf"(?:{re.escape(self.image_token)})+", text):
                parts.append((text[end : run.start()], len(run.group()) // len(self.image_token)))
                end = run.end()
            inside = ImageText(tuple(parts), text[end:])
            words = [before for before, _ in parts] + [inside.end]
            tokens = sum(count for _, count in parts) + sum(len(self.text_ids(word)) for word in words)
            self.known[width, height] = ImageLayout(tokens, inside=inside)
        return self.known[width, height]

    def image_arrays(self, image: Image, layout: ImageLayout, budget: int | None) -> ImageArrays:
        """See `HubRenderer.image_arrays`."""
        arrays: Any = self.image_processor(images=[image.convert("RGB")], return_tensors="np")
        return {name: np.asarray(array) for name, array in arrays.items() if name not in UNUSED}

    def token_inputs(self, ids: NDArray[np.int64], images: Sequence[ImageArrays]) -> ImageArrays:
        """1 at image tokens, for each input that has it."""
        return {name: (ids < 0).astype(np.int64) for name in self.type_inputs}
