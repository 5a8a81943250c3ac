"""Small images for the gallery, embedded as data URIs, within a budget for the whole file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, features

from phi3v_data.files import unsafe_reason
from phi3v_data.media.formats import TooLargeImageError, UnreadableImageError
from phi3v_data.media.images import decoding, load_image, probe, read_image_file

BUDGET_BYTES = 15_000_000
"""Bytes of base64 text; with rows and findings the page stays under 30 MB."""

MAX_PER_SAMPLE = 8
"""Images of one sample that are shown: the frames of a clip."""

MAX_PIXELS = 100_000_000
"""Larger images are not decoded for a thumbnail."""

NO_ROOM = "left out to keep this page small"

_SIDES = ((1000, 240), (2500, 176), (4500, 128))
_SMALLEST_SIDE = 96
_WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A data URI, empty if there is no image (`reason` says why), and the width and height of the original."""

    uri: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


class Thumbnailer:
    """Makes thumbnails until the budget is used up; each image file is scaled once."""

    def __init__(self, directory: Path, num_images: int, *, budget: int = BUDGET_BYTES) -> None:
        self.left = budget
        self.side = next((side for count, side in _SIDES if num_images <= count), _SMALLEST_SIDE)
        self._format = "WEBP" if features.check("webp") else "JPEG"
        self._root = (directory / "images").resolve()
        self._made: dict[str, Thumbnail] = {}

    def make(self, name: str) -> Thumbnail:
        """The thumbnail of one image of the directory; a problem with it becomes its `reason`, never an error."""
        if name not in self._made:
            thumbnail = self._make(name)
            self.left -= len(thumbnail.uri)
            self._made[name] = thumbnail
        return self._made[name]

    def _make(self, name: str) -> Thumbnail:
        reason = unsafe_reason(name)
        if reason:
            return Thumbnail(reason=f"its path {reason}")
        if self._root.is_file():  # an index of packed images
            return self._shrink(self._root / name) if self.left > 0 else Thumbnail(reason=NO_ROOM)
        try:
            path = (self._root / name).resolve(strict=True)
        except FileNotFoundError:
            return Thumbnail(reason="missing")
        except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop of links
            return Thumbnail(reason="unreadable")
        if not path.is_relative_to(self._root):
            return Thumbnail(reason="a link to outside images/")
        if not path.is_file():
            return Thumbnail(reason="not a file")
        if self.left <= 0:
            return Thumbnail(reason=NO_ROOM)
        return self._shrink(path)

    def _shrink(self, path: Path) -> Thumbnail:
        width = height = 0
        try:
            data = read_image_file(path)
            info = probe(data)
            width, height = info.width, info.height
            if width * height > MAX_PIXELS:
                return Thumbnail("", width, height, "too large to show")
            image = load_image(data, draft=("RGB", (self.side * 2, self.side * 2)))
            with decoding():
                small = _to_rgb(image)
                small.thumbnail((self.side, self.side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        except TooLargeImageError:
            return Thumbnail("", width, height, "too large to show")
        except (UnreadableImageError, OSError):
            return Thumbnail("", width, height, "cannot be decoded")
        buffer = io.BytesIO()
        small.save(buffer, self._format, quality=62, method=3)
        kind = self._format.lower()
        return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB: transparency on white, 16-bit grey scaled down; EXIF orientation ignored, as in training."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return ImageOps.autocontrast(image.convert("F").point(lambda value: value / 256).convert("L")).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (*_WHITE, 255))
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def count_shown(counts: Sequence[int]) -> int:
    """The number of thumbnails for samples with these numbers of images."""
    return sum(min(count, MAX_PER_SAMPLE) for count in counts)
