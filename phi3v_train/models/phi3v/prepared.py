"""A batch's layout, images and supervised tokens, computed on the host.

The training loader computes them from the batch that it has just collated, on the CPU, and they are copied to the
device with the batch: the forward and backward pass then never wait for the device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phi3v_train.models.labelled import Labelled
from phi3v_train.models.phi3v.packing import Layout, plan_layout, shifted_labels
from phi3v_train.models.phi3v.vision import ImageTokensError, gather_index, match_images


@dataclass(frozen=True)
class ImagePlaces:
    """The image tokens of a batch: `positions` (k,) in the flattened batch, and `index` (k,) of the projected rows.

    `sizes` (n, 2) are the images' padded (height, width), on the CPU wherever the others are.
    """

    positions: Tensor
    index: Tensor
    sizes: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "ImagePlaces":
        """The same with the tensors for the device changed."""
        return ImagePlaces(change(self.positions), change(self.index), self.sizes)


@dataclass(frozen=True)
class Prepared:
    """All that a training step would otherwise have to read back from the device."""

    layout: Layout
    images: ImagePlaces | None
    labelled: Labelled

    def map(self, change: Callable[[Tensor], Tensor]) -> "Prepared":
        """The same with the tensors for the device changed."""
        images = self.images.map(change) if self.images is not None else None
        return Prepared(self.layout.map(change), images, self.labelled.map(change))


def prepare(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The model's arguments for a collated batch with labels, on the CPU.

    `prepared` replaces `labels`, `attention_mask`, `position_ids` and `image_sizes`.

    Raises:
        ImageTokensError: see `match_images`.
    """
    ids = inputs["input_ids"]
    layout = plan_layout(
        ids.shape[0],
        ids.shape[1],
        ids.device,
        attention_mask=inputs.get("attention_mask"),
        position_ids=inputs.get("position_ids"),
    )
    sizes = inputs.get("image_sizes")
    images = image_places(ids, layout.sample_starts, sizes if sizes is not None and len(sizes) else None)
    labelled = Labelled.by_targets(shifted_labels(inputs["labels"], layout))
    rest = {name: tensor for name, tensor in inputs.items() if name in ("input_ids", "canvases", "pixel_values")}
    return {**rest, "prepared": Prepared(layout, images, labelled)}


def image_places(
    input_ids: Tensor, sample_starts: Sequence[int], image_sizes: Tensor | None, *, resumed: bool = False
) -> ImagePlaces | None:
    """The image tokens of a batch, on the CPU; None if there are no images. For `resumed` see `match_images`.

    Raises:
        ImageTokensError: image tokens and images do not match.
    """
    ids = input_ids.flatten().cpu()
    positions = (ids < 0).nonzero().squeeze(1)
    if image_sizes is None:
        if len(positions):
            raise ImageTokensError("input_ids contain image tokens, but no images were given")
        return None
    sizes = image_sizes.cpu()
    listed: list[list[int]] = sizes.tolist()
    order = match_images(ids[positions], positions, sample_starts, listed, resumed)
    return ImagePlaces(positions, gather_index(listed, order), sizes.to(torch.long))
