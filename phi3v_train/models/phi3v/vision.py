"""Computes the embeddings of image tokens from tiles, and their positions in the sequence.

    tiles (t, 3, 336, 336) -> tower (t, 576, c) -> 2 x 2 merged (t * 144, 4 c) -> projected (t * 144, hidden)

The two separators are projected once each, and the sequence of an image is gathered from the projected rows: its grid
of tiles row by row, with `sub_GN` after each row of tokens, then `glb_GN`, then the global view in the same way.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from phi3v_data.tokens.phi3v_geometry import TILE_SIZE, TOKENS_PER_TILE, grid_num_tokens
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.tower import VisionTower

SIDE = 12
"""Token rows and columns of a tile after merging."""

SUB_SEPARATOR, GLOBAL_SEPARATOR, NUM_SEPARATORS = 0, 1, 2


class ImageTokensError(ValueError):
    """The image tokens in `input_ids` do not match the given images."""


class ImageEmbedding(nn.Module):
    """Tower, separators and projector, under the official names."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        width = int(config.vision_settings["hidden_size"])
        if config.img_processor["image_dim_out"] != width:
            raise ValueError(
                f"img_processor.image_dim_out is {config.img_processor['image_dim_out']}, but the vision tower is "
                f"{width} wide: give the tower's sizes in img_processor.vision_config of config.json"
            )
        merged = 4 * width
        self.img_processor = VisionTower(config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.img_projection = nn.Sequential(
            nn.Linear(merged, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles without padding (t, 3, 336, 336) -> rows (2 + t * 144, hidden): both separators, then all tiles.

        The second value is the tower's own features (t, 576, c).
        """
        features = self.img_processor(tiles)
        merged = merge_patches(features)
        separators = torch.cat((self.sub_GN.flatten(0, 2), self.glb_GN.flatten(0, 1))).to(merged.dtype)
        projected: Tensor = self.img_projection(torch.cat((separators, merged.flatten(0, 1))))
        return projected, features


def merge_patches(features: Tensor) -> Tensor:
    """(t, 576, c) -> (t, 144, 4 c): squares of 2 x 2 patches concatenated, row by row within a square."""
    count, num_patches, width = features.shape
    side = int(num_patches**0.5) // 2
    squares = features.view(count, side, 2, side, 2, width).permute(0, 1, 3, 2, 4, 5)
    return squares.reshape(count, side * side, 4 * width)


@lru_cache(maxsize=1024)
def image_rows(rows: int, cols: int) -> Tensor:
    """Index of the projected row for each token of an image of `rows` x `cols` tiles, (tokens,) on the CPU.

    Rows of tiles are counted from 0, with the global view first; separators are negative: -2 sub, -1 global.
    """
    cell = torch.arange(TOKENS_PER_TILE).view(SIDE, SIDE)
    tile = 1 + torch.arange(rows * cols).view(rows, cols)
    grid = tile[:, None, :, None] * TOKENS_PER_TILE + cell[None, :, None, :]
    grid = grid.reshape(rows * SIDE, cols * SIDE)

    def ended(block: Tensor) -> Tensor:
        return torch.cat((block, block.new_full((len(block), 1), SUB_SEPARATOR - NUM_SEPARATORS)), dim=1).flatten()

    between = torch.tensor([GLOBAL_SEPARATOR - NUM_SEPARATORS])
    return torch.cat((ended(grid), between, ended(cell)))


def gather_index(image_sizes: Sequence[Sequence[int]], order: Sequence[int]) -> Tensor:
    """Index into the output of `ImageEmbedding` that gives the tokens of the images in this order (CPU)."""
    grids = [(height // TILE_SIZE, width // TILE_SIZE) for height, width in image_sizes]
    bases, total = [], NUM_SEPARATORS
    for rows, cols in grids:
        bases.append(total)
        total += (rows * cols + 1) * TOKENS_PER_TILE
    pieces = []
    for image in order:
        rows_of = image_rows(*grids[image])
        pieces.append(torch.where(rows_of < 0, rows_of + NUM_SEPARATORS, rows_of + bases[image]))
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.long)


def match_images(
    ids: Tensor, positions: Tensor, sample_starts: Sequence[int], image_sizes: Sequence[Sequence[int]], resumed: bool
) -> list[int]:
    """Image of each run of image tokens, in the order of the sequence.

    `ids` are the negative ids (CPU) at the flat `positions` (CPU), `sample_starts` the starts of the samples. Image N
    of a sample has the id -N; images are in the order of the samples and, within a sample, of their numbers. With
    `resumed` (an earlier part of the sample is in a cache) numbers may start above 1.

    Raises ImageTokensError, naming the tag, if numbers have gaps or a run has the wrong length for its image.
    """
    starts = torch.tensor(list(sample_starts))
    samples = torch.bucketize(positions, starts, right=True) - 1
    # Within a run positions increase by one, so their difference to a simple count is constant.
    offsets = positions - torch.arange(len(positions))
    keys = torch.stack((samples, -ids, offsets))
    # `torch.unique_consecutive` with a dimension compares column by column in a loop.
    changed = (keys[:, 1:] != keys[:, :-1]).any(dim=0).nonzero().flatten() + 1
    bounds = [0, *changed.tolist(), keys.shape[1]]
    counts = [end - begin for begin, end in pairwise(bounds)] if len(ids) else []
    found = [(sample, tag) for sample, tag, _ in keys[:, bounds[: len(counts)]].T.tolist()]
    tags: dict[int, set[int]] = {}
    for sample, tag in found:
        tags.setdefault(sample, set()).add(tag)
    images: dict[tuple[int, int], int] = {}
    for sample, numbers in sorted(tags.items()):
        first = min(numbers) if resumed else 1
        if sorted(numbers) != list(range(first, first + len(numbers))):
            raise ImageTokensError(
                f"sample {sample} has image tokens numbered {sorted(numbers)}: they must run from {first} without gaps"
            )
        for number in sorted(numbers):
            images[sample, number] = len(images)
    if len(images) != len(image_sizes):
        raise ImageTokensError(
            f"input_ids contain {len(images)} images, but {len(image_sizes)} were given: every <|image_N|> "
            "needs its image, and every image its tag"
        )
    order = []
    for (sample, tag), count in zip(found, counts, strict=True):
        image = images[sample, tag]
        height, width = image_sizes[image]
        expected = grid_num_tokens(height // TILE_SIZE, width // TILE_SIZE)
        if count != expected or image in order:
            raise ImageTokensError(
                f"<|image_{tag}|> of sample {sample} has {count} tokens in input_ids, but its image, padded to "
                f"{width} x {height} pixels, needs {expected} in one run: a tag may be used only once, and input_ids "
                "and image_sizes must come from the same processor call"
            )
        order.append(image)
    return order
