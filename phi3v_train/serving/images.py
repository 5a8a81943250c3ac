"""The images of a request, from data URLs or downloads to Pillow images, with limits on bytes, pixels and time; and
those of a conversation in the terminal, from files.
"""

import base64
import binascii
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from phi3v_data.errors import Reject, UserError
from phi3v_data.formats.chat import Chat, ImageRef
from phi3v_data.formats.fetch import FetchLimits, fetch_image
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import ImageSource, decoding, exif_orientation, load_image, probe
from phi3v_data.messages import shown
from phi3v_train.serving.protocol import ApiError, Limits

FETCH = FetchLimits(max_bytes=20 << 20, connect=5.0, total=15.0, attempts=2, wait=0.5)
FETCH_ALL = 60.0  # seconds for all images of a request
WEB = ("http://", "https://")


def is_url(image: ImageRef) -> bool:
    """Whether an image has to be downloaded."""
    return str(image.value)[:8].lower().startswith(WEB)


def read_images(chat: Chat, limits: Limits, *, allow_url: bool) -> list[bytes]:
    """The images of a conversation as files, in order; their sizes are checked by their headers.

    Raises:
        ApiError: an image that cannot be read, is too large, or whose URL is not allowed.
    """
    files = []
    left_bytes, left_pixels = limits.body_bytes, limits.all_pixels
    until = time.monotonic() + FETCH_ALL
    for image in chat.images:
        data = _download(image, until, allow_url=allow_url) if is_url(image) else _from_data_url(image)
        with _refusing(image):
            info = probe(data)
        pixels = info.width * info.height
        if pixels > limits.pixels:
            size = f"{info.width} x {info.height} pixels"
            raise refused(image, f"has {size}, over the limit of {limits.pixels:,}")
        left_bytes -= len(data)
        left_pixels -= pixels
        if min(left_bytes, left_pixels) < 0:
            most = f"{limits.body_bytes:,} bytes" if left_bytes < 0 else f"{limits.all_pixels:,} pixels"
            raise refused(image, f"with it the images are over the limit of {most} in all")
        files.append(data)
    return files


def decode_images(chat: Chat, files: Sequence[bytes]) -> list[Any]:
    """The images of a conversation as Pillow images.

    Raises:
        ApiError: an image is damaged.
    """
    images = []
    for image, data in zip(chat.images, files, strict=True):
        with _refusing(image):
            images.append(load_upright(data))
    return images


def load_upright(source: ImageSource) -> Any:
    """A Pillow image the way up that browsers show it, and `clean --fix` stores the photos of training sets.

    Raises:
        As `load_image`.
    """
    from PIL import ImageOps

    image = load_image(source)
    with decoding():
        return ImageOps.exif_transpose(image) if exif_orientation(image) != 1 else image


def read_file(path: Path) -> Any:
    """The Pillow image of a file that a user named.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return load_upright(path.expanduser())
    except UnreadableImageError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (RuntimeError, ValueError):  # no such user behind ~, a NUL
        raise UserError(f"{path}: is not the path of a file") from None


def refused(image: ImageRef, why: str) -> ApiError:
    """The refusal of an image."""
    return ApiError(400, f"{image.field}: {why}", "messages")


@contextmanager
def _refusing(image: ImageRef) -> Iterator[None]:
    try:
        yield
    except UnreadableImageError as error:
        raise refused(image, str(error)) from None


def _download(image: ImageRef, until: float, *, allow_url: bool) -> bytes:
    """The file at a URL; the download ends at `until`, by `time.monotonic`."""
    if not allow_url:
        raise refused(image, "URLs are not fetched by this server; send a data URL")
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise refused(image, f"the images have not been downloaded within {FETCH_ALL:g} s; send data URLs")
    try:
        return fetch_image(str(image.value), image.field, limits=replace(FETCH, total=min(FETCH.total, seconds)))
    except Reject as error:
        raise ApiError(400, error.message, "messages") from None


def _from_data_url(image: ImageRef) -> bytes:
    url = str(image.value)
    head, comma, text = url.partition(",")
    if head[:5].lower() != "data:":
        raise refused(image, f"{shown(url)} is neither a data URL nor an http(s) URL")
    if not comma or not head.lower().endswith(";base64"):
        raise refused(image, "a data URL begins with data:image/TYPE;base64,")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise refused(image, "the base64 text of the data URL is damaged") from None
