"""Phi-3-vision's image processor, with Pillow and torch alone.

Every picture is enlarged or reduced to fill a budget of `num_crops` squares of 336 pixels and padded with white
(`phi3v_data.tokens.phi3v_geometry` says where), normalised, and cut into tiles behind a global view
(`phi3v_train.models.phi3v.tiles`). As in the original, alpha is dropped, not composited, and an EXIF turn is ignored.
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
    """What may be given to the image processor, when it is built or at a call."""

    num_crops: int | None
    return_canvas: bool | None


class Phi3VImageProcessor(BaseImageProcessor):  # type: ignore[misc]  # transformers is untyped for mypy
    """Pictures to `pixel_values`, or to padded canvases in bytes which the model cuts on its own device.

    `num_crops` (1 to 16) is the tile budget: a picture costs up to num_crops + 1 tiles. The released models use 4 for
    several pictures and 16 for one. `tuned_num_crops` is the budget that a training run of this package used to make
    the model; it is None, and not written, for every other model.
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
        """What `preprocessor_config.json` holds."""
        config: dict[str, Any] = super().to_dict()
        if self.tuned_num_crops is None:
            config.pop("tuned_num_crops", None)
        return config

    def num_image_tokens(self, width: int, height: int, num_crops: int | None = None) -> int:
        """Image tokens of a picture of `width` x `height` pixels; see `phi3v_data.tokens.phi3v_geometry`."""
        return crop_geometry(width, height, num_crops or self.num_crops).num_tokens

    def preprocess(
        self,
        images: Any,
        num_crops: int | None = None,
        return_canvas: bool | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """One picture or a flat or nested list of pictures (PIL, numpy, torch, path) to model inputs.

        Returns `pixel_values` (n, num_crops + 1, 3, 336, 336) fp32, or, with `return_canvas`, `canvases`, a flat uint8
        tensor (see `tiles`); `image_sizes` (n, 2), padded (H, W); and `num_img_tokens`, a list of n counts.
        """
        num_crops = self.num_crops if num_crops is None else num_crops
        check_num_crops(num_crops)
        pictures = make_flat_list_of_images(self.fetch_images(images))
        padded = [self.make_canvas(picture, num_crops) for picture in pictures]
        canvases = torch.from_numpy(np.concatenate([canvas.reshape(-1) for canvas in padded]))
        image_sizes = torch.tensor([canvas.shape[:2] for canvas in padded], dtype=torch.long)
        data: dict[str, Any] = {}
        if return_canvas:
            if tuple(self.image_mean) != CLIP_MEAN or tuple(self.image_std) != CLIP_STD:
                raise ValueError(
                    "return_canvas leaves normalising to the model, which knows CLIP's image_mean and image_std only: "
                    "leave return_canvas out, or use CLIP's values"
                )
            data["canvases"] = canvases
        else:
            tiles = tiles_from_canvases(canvases, image_sizes, mean=self.image_mean, std=self.image_std)
            data["pixel_values"] = pad_tiles(tiles, image_sizes, num_crops + 1)
        data["image_sizes"] = image_sizes
        feature = BatchFeature(data, tensor_type=return_tensors)
        feature["num_img_tokens"] = [grid_num_tokens(*map(int, size)) for size in image_sizes // TILE_SIZE]
        return feature

    def make_canvas(self, picture: Any, num_crops: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The padded picture in bytes, (H, W, 3).

        A picture taller than wide is mirrored on its diagonal before resizing and back after padding, as the original
        does it: Pillow's two resizing passes do not commute to the last bit.
        """
        image = as_grey_or_rgb(picture)
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


def as_grey_or_rgb(picture: Any) -> Image.Image:
    """A picture of any kind transformers knows, in mode L if it is, else in mode RGB; alpha is dropped."""
    image = picture if isinstance(picture, Image.Image) else to_pil_image(picture)
    return image if image.mode == "L" else image.convert("RGB")
