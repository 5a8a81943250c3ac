"""Phi-3-vision conversations and images as model inputs.

    <|system|>\\n{system}<|end|>\\n                                   where there is a system message
    <|user|>\\n{image tags}\\n{user}<|end|>\\n<|assistant|>\\n          every turn; tags are numbered through all turns
    {assistant}<|end|>\\n                                             its answer
    <|endoftext|>                                                    once, at the end

What precedes an answer is encoded by `prompts.encode_prompt`, the processor's own function, so beginning-of-sequence
ids are where the processor puts them. Each answer is tokenized alone: together with `<|assistant|>` its leading space
would vanish.

An image travels as a padded canvas in bytes, which the model cuts and normalises on its device (`tiles`):

    canvases    flat uint8, one (H, W, 3) image after another, H and W multiples of 336
    image_sizes (n, 2) int64, their (H, W)
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from phi3v_data.schema import Turn
from phi3v_data.tokens.phi3v_geometry import crop_geometry
from phi3v_train.models.phi3v.prompts import encode_prompt
from phi3v_train.models.renderer import ImageArrays, ImageLayout, Renderer, turn_text


class Phi3VRenderer(Renderer):
    """Encodes as the released processor does; all that it needs of a processor is `tokenizer` and `make_canvas`."""

    def image_layout(self, width: int, height: int, budget: int | None) -> ImageLayout:
        """Layout under a budget of `budget` tiles, 1 to 16.

        Raises:
            ImageShapeError: the image is too narrow.
        """
        assert budget is not None
        return crop_layout(width, height, budget)

    def image_arrays(self, image: Image, layout: ImageLayout, budget: int | None) -> ImageArrays:
        """`canvases` (H, W, 3) uint8 and `image_sizes` (2,) int64 of one image."""
        canvas = self.image_processor.make_canvas(image, budget)
        assert layout.facts is not None
        assert canvas.shape[:2] == (layout.facts["canvas_height"], layout.facts["canvas_width"])
        return {"canvases": canvas, "image_sizes": np.array(canvas.shape[:2], dtype=np.int64)}

    def collate_images(self, images: Sequence[ImageArrays]) -> dict[str, NDArray[Any]]:
        """All canvases flat, one after another, and their sizes."""
        return {
            "canvases": np.concatenate([image["canvases"].reshape(-1) for image in images]),
            "image_sizes": np.stack([image["image_sizes"] for image in images]),
        }

    def prompt(
        self, turn: Turn, images: Sequence[ImageLayout], *, first_image: int, begins: bool, system: str = ""
    ) -> list[int]:
        """Ids of a turn up to its generation point; see `Renderer.prompt`.

        Raises:
            ImageTagError: the text contains an image tag.
        """
        text = self.tokens.chat.turn_prompt(turn_text(turn), system=system, first_image=first_image, begins=begins)
        counts = [image.num_tokens for image in images]
        return encode_prompt(self.tokenizer, text, counts, first_image=first_image, bos=begins)


@lru_cache(maxsize=1 << 16)
def crop_layout(width: int, height: int, num_crops: int) -> ImageLayout:
    """Layout of an image by its crop geometry."""
    crop = crop_geometry(width, height, num_crops)
    return ImageLayout(
        crop.num_tokens,
        crop.num_tiles,
        {
            "canvas_width": crop.padded_width,
            "canvas_height": crop.padded_height,
            "rows": crop.rows,
            "cols": crop.cols,
        },
        f"on a canvas of {crop.padded_width} x {crop.padded_height}, {crop.cols} x {crop.rows} tiles + global view",
    )
