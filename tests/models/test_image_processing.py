"""Pixels, sizes and counts of the image processor against Microsoft's code and geometry; canvases against both."""

import hashlib
import io
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from golden_files import GOLDEN, golden_image, golden_json
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from phi3v_data.tokens.family import ImageShapeError
from phi3v_data.tokens.phi3v_geometry import crop_geometry
from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
from phi3v_train.models.phi3v.tiles import (
    CLIP_MEAN,
    CLIP_STD,
    drop_padding,
    normalise,
    num_tiles,
    pad_tiles,
    split_canvases,
    tile_mask,
    tiles_from_canvases,
)

CASES = sorted(golden_json("image_processor.json"))
PILLOW_OF_REFERENCE = "13.0.0"


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("case", CASES)
def test_golden_images(case: str) -> None:
    name, num_crops = case.rsplit(".", 1)
    expected = golden_json("image_processor.json")[case]
    features = Phi3VImageProcessor()(golden_image(name), num_crops=int(num_crops))
    pixels = features["pixel_values"]
    assert list(pixels.shape) == expected["pixel_values_shape"]
    assert pixels.dtype == torch.float32
    assert features["image_sizes"].tolist() == expected["image_sizes"]
    assert features["num_img_tokens"] == expected["num_img_tokens"]
    if PIL.__version__ == PILLOW_OF_REFERENCE:
        assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest() == expected["sha256_fp32"]
    assert len(drop_padding(pixels, features["image_sizes"])) == expected["last_nonzero_tile"] + 1


def test_golden_slices() -> None:
    """Every twelfth pixel of the global view, the first and the last tile; says something on any Pillow."""
    slices = load_file(GOLDEN / "image_processor_slices.safetensors")
    cases = sorted({key.rsplit(".", 1)[0] for key in slices})
    assert len(cases) == 33
    for case in cases:
        name, num_crops = case.rsplit(".", 1)
        features = Phi3VImageProcessor(num_crops=int(num_crops))(golden_image(name))
        tiles = drop_padding(features["pixel_values"], features["image_sizes"])
        for part, tile in {"global": tiles[0], "tile1": tiles[1], "lasttile": tiles[-1]}.items():
            expected = slices[f"{case}.{part}_stride12"]
            torch.testing.assert_close(tile[..., ::12, ::12], expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("num_crops", [1, 4, 16])
def test_canvases_become_the_same_bits(num_crops: int) -> None:
    names = sorted({case.rsplit(".", 1)[0] for case in CASES})
    images = [golden_image(name) for name in names]
    processor = Phi3VImageProcessor(num_crops=num_crops)
    pixels = processor(images)
    canvas = processor(images, return_canvas=True)
    assert canvas["canvases"].dtype == torch.uint8
    assert canvas["canvases"].dim() == 1
    assert torch.equal(canvas["image_sizes"], pixels["image_sizes"])
    tiles = tiles_from_canvases(canvas["canvases"], canvas["image_sizes"])
    assert torch.equal(tiles, drop_padding(pixels["pixel_values"], pixels["image_sizes"]))
    assert torch.equal(pad_tiles(tiles, canvas["image_sizes"], num_crops + 1), pixels["pixel_values"])
    # An image alone and the same among others: a batch never changes a bit.
    for name, size, row in list(zip(names, pixels["image_sizes"], pixels["pixel_values"], strict=True))[::4]:
        alone = processor(golden_image(name), return_canvas=True)
        assert torch.equal(alone["image_sizes"][0], size)
        assert torch.equal(pad_tiles(tiles_from_canvases(**only_canvases(alone)), size[None], num_crops + 1)[0], row)


def test_the_global_view_of_a_single_tile_is_the_tile() -> None:
    """As the original's interpolation gives it, which is not computed for this size."""
    canvas = Phi3VImageProcessor(num_crops=1)(noise(200, 200), return_canvas=True)
    whole = normalise(canvas["canvases"].view(1, 336, 336, 3))
    expected = functional.interpolate(whole, size=(336, 336), mode="bicubic", align_corners=False)
    tiles = tiles_from_canvases(**only_canvases(canvas))
    assert torch.equal(tiles, torch.cat((expected, whole)))


def only_canvases(features: Any) -> dict[str, torch.Tensor]:
    return {name: features[name] for name in ("canvases", "image_sizes")}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([1, 2, 4, 7, 9]))
def test_sizes_and_counts_are_those_of_geometry(width: int, height: int, num_crops: int) -> None:
    processor = Phi3VImageProcessor(num_crops=num_crops)
    try:
        geometry = crop_geometry(width, height, num_crops)
    except ImageShapeError:
        with pytest.raises(ImageShapeError):
            processor(noise(width, height))
        return
    features = processor(noise(width, height), return_canvas=True)
    assert features["image_sizes"].tolist() == [list(geometry.image_size)]
    assert features["num_img_tokens"] == [geometry.num_tokens] == [processor.num_image_tokens(width, height)]
    assert num_tiles(features["image_sizes"]).tolist() == [geometry.num_tiles]
    [canvas] = split_canvases(features["canvases"], features["image_sizes"])
    outside = torch.ones(canvas.shape[:2], dtype=torch.bool)
    outside[geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width] = False
    assert bool((canvas[outside] == 255).all())
    tiles = tiles_from_canvases(features["canvases"], features["image_sizes"])
    # Tile (r, c) read from the canvas by hand.
    row, col = geometry.rows - 1, geometry.cols - 1
    piece = canvas[row * 336 : (row + 1) * 336, col * 336 : (col + 1) * 336].double() / 255
    by_hand = (piece - torch.tensor(CLIP_MEAN).double()) / torch.tensor(CLIP_STD).double()
    torch.testing.assert_close(tiles[-1].double(), by_hand.permute(2, 0, 1), atol=1e-5, rtol=0)


def test_a_rotated_image_gives_rotated_pixels() -> None:
    processor = Phi3VImageProcessor(num_crops=4)
    wide = noise(640, 210)
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    [one] = split_canvases(**only_canvases(processor(wide, return_canvas=True)))
    [other] = split_canvases(**only_canvases(processor(tall, return_canvas=True)))
    assert torch.equal(one.transpose(0, 1), other)


def test_kinds_of_input() -> None:
    """PIL, numpy, torch (channels first), a path; nested lists; alpha dropped, an EXIF turn ignored."""
    processor = Phi3VImageProcessor(num_crops=1)
    path = str(GOLDEN / "images" / "square.png")
    image = golden_image("square")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    rgba = image.convert("RGBA")
    rgba.putalpha(7)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(buffer, "PNG", exif=exif)
    expected = processor(image)["pixel_values"]
    for same in (array, tensor, path, [path], [[array]], rgba, Image.open(buffer)):
        assert torch.equal(processor(same)["pixel_values"], expected)


def test_padding_tiles() -> None:
    sizes = torch.tensor([[336, 336], [672, 1008]])
    assert num_tiles(sizes).tolist() == [2, 7]
    assert tile_mask(sizes, 8).sum(1).tolist() == [2, 7]
    assert tile_mask(sizes, 8)[0].tolist() == [True, True] + [False] * 6


def test_dtype_of_tiles() -> None:
    features = Phi3VImageProcessor(num_crops=1)(noise(50, 60), return_canvas=True)
    exact = tiles_from_canvases(**only_canvases(features))
    half = tiles_from_canvases(**only_canvases(features), dtype=torch.bfloat16)
    assert torch.equal(half, exact.bfloat16())


def test_numpy_output() -> None:
    features = Phi3VImageProcessor(num_crops=1)(noise(50, 60), return_tensors="np")
    assert isinstance(features["pixel_values"], np.ndarray)
    assert isinstance(features["image_sizes"], np.ndarray)


@pytest.mark.parametrize(
    ("canvases", "sizes", "message"),
    [
        (torch.zeros(336 * 336 * 3, dtype=torch.uint8), [[336, 337]], "multiples of 336"),
        (torch.zeros(336 * 336 * 3 - 1, dtype=torch.uint8), [[336, 336]], "flat uint8 tensor of 338688 values"),
        (torch.zeros(336 * 336 * 3), [[336, 336]], "flat uint8 tensor"),
    ],
)
def test_canvases_that_do_not_fit_their_sizes(canvases: torch.Tensor, sizes: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiles_from_canvases(canvases, torch.tensor(sizes))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="num_crops must be a whole number from 1 to 16, not 17"):
        Phi3VImageProcessor(num_crops=17)
    with pytest.raises(ValueError, match="num_crops must be"):
        Phi3VImageProcessor()(noise(9, 9), num_crops=0)
    with pytest.raises(ImageShapeError, match="6000 x 1 pixels is too narrow"):
        Phi3VImageProcessor(num_crops=1)(noise(6000, 1))
    with pytest.raises(ValueError, match="num_img_tokens must be 144"):
        Phi3VImageProcessor(num_img_tokens=64)
    with pytest.raises(ValueError, match="with return_canvas the model normalises"):
        Phi3VImageProcessor(image_mean=[0.5, 0.5, 0.5])(noise(9, 9), return_canvas=True)
