"""Converts padded images to the input of the vision tower, on any device: normalised global views and tiles.

A *canvas* is an image after resizing and padding (`phi3v_data.tokens.phi3v_geometry`), still in bytes: (H, W, 3) uint8
with H and W multiples of 336. Canvases of several images are concatenated to one flat byte tensor, together with
`image_sizes` (n, 2), their (H, W): a quarter of the bytes of fp32 tiles, without padding between images of different
size, and samples are batched by `torch.cat`.

    canvases (sum of H * W * 3) uint8, image_sizes (n, 2)
        -> tiles_from_canvases -> (total tiles, 3, 336, 336): [global, row-major tiles] of image 1, then of 2, ...
        -> pad_tiles           -> pixel_values (n, num_crops + 1, 3, 336, 336), the original's layout, padded with zeros

The image processor creates its `pixel_values` with the same functions, so both ways give exactly the same values in
fp32 on a CPU.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from phi3v_data.tokens.phi3v_geometry import TILE_SIZE
from phi3v_train.device import constant_on

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of each colour channel, as CLIP was trained."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of each colour channel, as CLIP was trained."""


def num_tiles(image_sizes: Tensor) -> Tensor:
    """Number of tiles of each image, including its global view: (n, 2) padded (H, W) -> (n,)."""
    grid = image_sizes // TILE_SIZE
    return grid[:, 0] * grid[:, 1] + 1


def tile_mask(image_sizes: Tensor, max_tiles: int) -> Tensor:
    """Mask of the `max_tiles` tiles of `pixel_values` that are not zero padding: (n, max_tiles) bool."""
    places = torch.arange(max_tiles, device=image_sizes.device)
    return places[None, :] < num_tiles(image_sizes)[:, None]


def tile_index(image_sizes: Tensor, max_tiles: int, device: torch.device) -> Tensor:
    """Index on `device` of the tiles without padding among all `n * max_tiles` of `pixel_values`."""
    mask = tile_mask(image_sizes.cpu(), max_tiles)
    return constant_on(mask.flatten().nonzero().squeeze(1), device)


def drop_padding(pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
    """The tiles of `pixel_values` (n, t, 3, 336, 336) without padding, in order: (total tiles, 3, 336, 336)."""
    index = tile_index(image_sizes, pixel_values.shape[1], pixel_values.device)
    return pixel_values.flatten(0, 1).index_select(0, index)


def pad_tiles(tiles: Tensor, image_sizes: Tensor, max_tiles: int) -> Tensor:
    """The inverse of `drop_padding`: each image padded with zero tiles up to `max_tiles`."""
    padded = tiles.new_zeros((len(image_sizes) * max_tiles, *tiles.shape[1:]))
    padded.index_copy_(0, tile_index(image_sizes, max_tiles, tiles.device), tiles)
    return padded.view(len(image_sizes), max_tiles, *tiles.shape[1:])


def split_canvases(canvases: Tensor, image_sizes: Tensor) -> list[Tensor]:
    """Views of the single canvases, each (H, W, 3) uint8, of a flat byte tensor.

    Raises ValueError if the sizes are not multiples of 336 or do not add up to the given bytes.
    """
    sizes: list[list[int]] = image_sizes.tolist()
    if any(height < 1 or width < 1 or height % TILE_SIZE or width % TILE_SIZE for height, width in sizes):
        raise ValueError(f"image_sizes must be multiples of {TILE_SIZE}, got {sizes}")
    lengths = [height * width * 3 for height, width in sizes]
    if canvases.dtype != torch.uint8 or canvases.dim() != 1 or canvases.numel() != sum(lengths):
        raise ValueError(
            f"canvases must be a flat uint8 tensor of {sum(lengths)} values for image_sizes {sizes}, "
            f"got {tuple(canvases.shape)} {canvases.dtype}"
        )
    pieces = torch.split(canvases, lengths)
    return [piece.view(height, width, 3) for piece, (height, width) in zip(pieces, sizes, strict=True)]


def tiles_from_canvases(
    canvases: Tensor,
    image_sizes: Tensor,
    *,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Global views and tiles of all images, (total tiles, 3, 336, 336), on the device of `canvases`.

    Canvases of the same size are processed together. Computation is in fp32 for any `dtype` of the result.
    """
    sizes: list[list[int]] = image_sizes.tolist()  # read once, where they are
    counts = [(height // TILE_SIZE) * (width // TILE_SIZE) + 1 for height, width in sizes]
    result = torch.empty((sum(counts), 3, TILE_SIZE, TILE_SIZE), dtype=dtype, device=canvases.device)
    places = torch.split(result, counts)
    groups: dict[tuple[int, ...], list[int]] = {}
    singles = split_canvases(canvases, image_sizes)
    for index, canvas in enumerate(singles):
        groups.setdefault(tuple(canvas.shape), []).append(index)
    for indices in groups.values():
        normalised = normalise(torch.stack([singles[index] for index in indices]), mean, std)
        views = global_view(normalised)
        for index, view, image in zip(indices, views, normalised, strict=True):
            places[index][0] = view
            places[index][1:] = cut(image)
    return result


def normalise(canvases: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(k, H, W, 3) uint8 -> (k, 3, H, W) float32: to 0..1, then minus mean, over standard deviation."""
    scaled = canvases.permute(0, 3, 1, 2).contiguous().float().div_(255)
    means, stds = (channel_values(tuple(values), canvases.device) for values in (mean, std))
    return scaled.sub_(means).div_(stds)


@lru_cache(maxsize=32)
def channel_values(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each colour channel, (3, 1, 1) fp32, copied to a device once."""
    return constant_on(torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), device)


def global_view(normalised: Tensor) -> Tensor:
    """(k, 3, H, W) -> (k, 3, 336, 336): the whole image, without its aspect ratio, bicubic without antialiasing.

    It is computed from the normalised values, because bicubic interpolation exceeds the range of a byte. A canvas of
    one tile is its own global view: at the same size interpolation gives each value back exactly.
    """
    if normalised.shape[-2:] == (TILE_SIZE, TILE_SIZE):
        return normalised
    return functional.interpolate(normalised, size=(TILE_SIZE, TILE_SIZE), mode="bicubic", align_corners=False)


def cut(image: Tensor) -> Tensor:
    """(3, H, W) -> (rows * cols, 3, 336, 336), row by row."""
    channels, height, width = image.shape
    rows, cols = height // TILE_SIZE, width // TILE_SIZE
    grid = image.view(channels, rows, TILE_SIZE, cols, TILE_SIZE)
    return grid.permute(1, 3, 0, 2, 4).reshape(rows * cols, channels, TILE_SIZE, TILE_SIZE)
