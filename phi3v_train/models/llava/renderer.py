"""Inputs of LLaVA-NeXT and LLaVA-OneVision.

pixel_values      (images, tiles of the image that has most, 3, height, width) float32; the model leaves padding out
image_sizes       (images, 2) int64: height and width of each image in its file
batch_num_images  LLaVA-OneVision: (samples with images,) int64; of several, no image is cut into tiles
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from phi3v_train.models.huggingface.renderer import HubRenderer
from phi3v_train.models.renderer import ImageArrays, ImageLayout


class LlavaRenderer(HubRenderer):
    """Encodes grids of tiles."""

    model_inputs = ("pixel_values", "image_sizes")

    def collate_images(self, images: Sequence[ImageArrays]) -> dict[str, NDArray[Any]]:
        """Images padded to the one with most tiles."""
        most = max(image["pixel_values"].shape[1] for image in images)
        tiles = []
        for image in images:
            array = image["pixel_values"]
            tiles.append(np.pad(array, [(0, 0), (0, most - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]))
        sizes = np.concatenate([image["image_sizes"] for image in images])
        return {"pixel_values": np.concatenate(tiles), "image_sizes": sizes.astype(np.int64)}


class OnevisionRenderer(LlavaRenderer):
    """Encodes one of several images as one tile."""

    def image_arrays(self, image: Image, layout: ImageLayout, budget: int | None) -> ImageArrays:
        """The same; an image with a grid has two tiles at least."""
        given = [image.convert("RGB")] * (1 if layout.num_tiles > 1 else 2)
        arrays = self.image_processor(images=[given], return_tensors="np")
        return {name: np.asarray(arrays[name])[:1] for name in self.model_inputs}

    def collate_images(self, images: Sequence[ImageArrays]) -> dict[str, NDArray[Any]]:
        """The same, and for the model an image with a grid as a sample with one image, all others between as one."""
        counts: list[int] = []
        for alone, group in groupby(image["pixel_values"].shape[1] > 1 for image in images):
            number = len(list(group))
            counts += [1] * number if alone else [number]
        return {**super().collate_images(images), "batch_num_images": np.array(counts, np.int64)}
