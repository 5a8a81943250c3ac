"""Images made in memory, for tests of what reads them."""

import io
from typing import Any

import numpy as np
from PIL import Image


def make_image(seed: int = 0, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """A smooth pattern that no other seed comes near."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(20, 230, (6, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()
