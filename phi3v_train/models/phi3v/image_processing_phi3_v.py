"""Phi-3-vision's image processor, with only Pillow and torch.

Every image is scaled to fill a budget of `num_crops` squares of 336 pixels and padded with white
(`phi3v_data.tokens.phi3v_geometry`), normalised, and cut into tiles after a global view
(`phi3v_train.models.phi3v.tiles`). As in the original, alpha is dropped, not composited, and EXIF orientation is
ignored.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

from phi3v_data.tokens.phi3v_geometry import TILE_SIZE, TOKENS_PER_TILE, check_num_crops, crop_geometry, grid_num_tokens
from phi3v_train.models.phi3v.tiles import CLIP_MEAN, CLIP_STD, pad_tiles, tiles_from_canvases


class Phi3VImagesKwargs(ImagesKwargs, total=False):  # type: ignore[misc, call-arg]  # transformers is untyped for mypy
    """Options of the image processor, given when it is built or at a call."""

    num_crops: int | None
    return_canvas: bool | None


class Phi3VImageProcessor(BaseImageProcessor):  # type: ignore[misc]  # transformers is untyped for mypy
    """Converts images to `pixel_values`, or to padded canvases in bytes that the model cuts on its own device.

    `num_crops` (1 to 16) is the tile budget: an image takes up to num_crops + 1 tiles. The released models use 4 for
    several images and 16 for one. `tuned_num_crops` is the budget of the training run of this package that made the
    model; it is None, and not written, for all other models.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012  # transformers' own form
    valid_kwargs = Phi3VImagesKwargs

    def __init__(
        self,
        num_crops: int = 16,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        num_img_tokens: int = TOKENS_PER_TILE,
        tuned_num_crops: int | None = None,
        **kwargs: Any,
    ) -> None:
        # A saved auto_map names code files that are not saved with it, and would break the next load.
        kwargs.pop("auto_map", None)
        super().__init__(**kwargs)
        check_num_crops(num_crops)
        if tuned_num_crops is not None:
            check_num_crops(tuned_num_crops)
        if num_img_tokens != TOKENS_PER_TILE:
            raise ValueError(f"num_img_tokens must be {TOKENS_PER_TILE}, the only value of this model")
        self.num_crops = num_crops
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.num_img_tokens = num_img_tokens
        self.tuned_num_crops = tuned_num_crops

    def to_dict(self) -> dict[str, Any]:
        """Content of `preprocessor_config.json`."""
        config: dict[str, Any] = super().to_dict()
        if self.tuned_num_crops is None:
            config.pop("tuned_num_crops", None)
        return config

    def num_image_tokens(self, width: int, height: int, num_crops: int | None = None) -> int:
        """Image tokens of an image of `width` x `height` pixels; see `phi3v_data.tokens.phi3v_geometry`."""
        return crop_geometry(width, height, num_crops or self.num_crops).num_tokens

    def preprocess(
        self,
        images: Any,
        num_crops: int | None = None,
        return_canvas: bool | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Convert one image or a flat or nested list of images (PIL, numpy, torch, path) to model inputs.

        Returns `pixel_values` (n, num_crops + 1, 3, 336, 336) fp32, or, with `return_canvas`, `canvases`, a flat uint8
        tensor (see `tiles`); `image_sizes` (n, 2), padded (H, W); and `num_img_tokens`, a list of n counts.
        """
        num_crops = self.num_crops if num_crops is None else num_crops
        check_num_crops(num_crops)
        images = make_flat_list_of_images(self.fetch_images(images))
        padded = [self.make_canvas(image, num_crops) for image in images]
        canvases = torch.from_numpy(np.concatenate([canvas.reshape(-1) for canvas in padded]))
        image_sizes = torch.tensor([canvas.shape[:2] for canvas in padded], dtype=torch.long)
        data: dict[str, Any] = {}
        if return_canvas:
            if tuple(self.image_mean) != CLIP_MEAN or tuple(self.image_std) != CLIP_STD:
                raise ValueError(
                    "with return_canvas the model normalises, and it only knows CLIP's image_mean and image_std: "
                    "use CLIP's values, or no return_canvas"
                )
            data["canvases"] = canvases
        else:
            tiles = tiles_from_canvases(canvases, image_sizes, mean=self.image_mean, std=self.image_std)
            data["pixel_values"] = pad_tiles(tiles, image_sizes, num_crops + 1)
        data["image_sizes"] = image_sizes
        feature = BatchFeature(data, tensor_type=return_tensors)
        feature["num_img_tokens"] = [grid_num_tokens(*map(int, size)) for size in image_sizes // TILE_SIZE]
        return feature

    def make_canvas(self, image: Any, num_crops: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The padded image in bytes, (H, W, 3).

        An image taller than wide is transposed before resizing and back after padding, as in the original: Pillow's two
        resizing passes do not commute exactly.
        """
        image = as_grey_or_rgb(image)
        geometry = crop_geometry(*image.size, num_crops)
        size = (geometry.width, geometry.height)
        corner = (geometry.left, geometry.top)
        canvas_size = (geometry.padded_width, geometry.padded_height)
        if geometry.turned:
            image = image.transpose(Image.Transpose.TRANSPOSE)
            size, corner, canvas_size = size[::-1], corner[::-1], canvas_size[::-1]
        resized = image.resize(size, Image.Resampling.BILINEAR)
        if size == canvas_size:
            canvas = resized
        else:
            canvas = Image.new(image.mode, canvas_size, "white")
            canvas.paste(resized, corner)
        if geometry.turned:
            canvas = canvas.transpose(Image.Transpose.TRANSPOSE)
        return np.asarray(canvas.convert("RGB"))


def as_grey_or_rgb(image: Any) -> Image.Image:
    """An image of any type that transformers supports, in mode L if it is grey, else in RGB; alpha is dropped."""
    known: Image.Image = image if isinstance(image, Image.Image) else to_pil_image(image)
    return known if known.mode == "L" else known.convert("RGB")
