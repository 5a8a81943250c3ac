"""Stills: the bytes of Pillow, safe names and paths, and damage that is seen."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import make_pixels
from PIL import Image

from phi3v_data.media import formats, images
from phi3v_data.media.encoding import encode, fit
from phi3v_data.media.formats import TooLargeImageError, UnreadableImageError
from phi3v_data.media.images import ImageInfo, probe
from phi3v_data.media.integrity import check_content

SIZES = ((320, 240), (321, 239), (16, 16), (17, 33), (8, 8), (1, 1), (3, 200), (640, 360))


def by_pillow(pixels: np.ndarray[Any, Any], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", SIZES)
def test_jpeg_bytes_are_those_of_pillow(size: tuple[int, int]) -> None:
    """OpenCV and Pillow bring their own libjpeg-turbo: should one change, this says so."""
    pytest.importorskip("cv2")
    pixels = make_pixels(3, *size)
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    for content in (pixels, noise, pixels[..., ::-1], pixels[..., 0]):
        assert encode(content, "jpeg") == by_pillow(content, "JPEG")
        for quality in (1, 10, 50, 75, 85, 90, 95, 100):
            assert encode(content, "jpeg", quality) == by_pillow(content, "JPEG", quality=quality)


def test_without_opencv_the_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = make_pixels(5, 64, 48)
    expected = encode(pixels, "jpeg", 90)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert encode(pixels, "jpeg", 90) == expected


def test_png_is_lossless_and_webp_is_pillows() -> None:
    pixels = make_pixels(7, 61, 47)
    with Image.open(io.BytesIO(encode(pixels, "png"))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert encode(pixels, "webp") == by_pillow(pixels, "WEBP", quality=80) == by_pillow(pixels, "WEBP")
    assert encode(pixels, "webp", 30) == by_pillow(pixels, "WEBP", quality=30)


def test_a_pil_image_is_turned_as_its_exif_says_and_made_rgb() -> None:
    image = Image.fromarray(make_pixels(1, 40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as stored, Image.open(io.BytesIO(encode(stored, "png"))) as turned:
        assert stored.size == (40, 20)
        assert turned.size == (20, 40)
        np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(stored), -1))
        assert turned.getexif().get(0x0112, 1) == 1
    for mode in ("RGBA", "P", "L", "CMYK", "1"):
        with Image.open(io.BytesIO(encode(image.convert(mode), "jpeg"))) as stored:
            assert stored.mode in ("RGB", "L")


def test_pixels_of_another_kind_are_refused() -> None:
    for wrong in (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.float32), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            encode(wrong, "jpeg")


@given(width=st.integers(1, 300), height=st.integers(1, 300), max_side=st.integers(1, 200))
def test_fit_keeps_the_shape_within_a_pixel(width: int, height: int, max_side: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    fitted = fit(pixels, max_side)
    assert fit(pixels, 0) is pixels
    if max(width, height) <= max_side:
        assert fitted is pixels
        return
    assert max(fitted.shape[:2]) == max_side
    scale = max_side / max(width, height)
    assert abs(fitted.shape[1] - max(1, width * scale)) <= 0.5
    assert abs(fitted.shape[0] - max(1, height * scale)) <= 0.5


def test_probe_reads_the_header_only(tmp_path: Path) -> None:
    image = Image.fromarray(make_pixels(1, 40, 20))
    exif = image.getexif()
    exif[0x0112] = 8
    image.save(tmp_path / "a.jpg", exif=exif)
    assert probe(tmp_path / "a.jpg") == ImageInfo(40, 20, "JPEG", "RGB", 8)
    image.save(tmp_path / "b.gif", save_all=True, append_images=[Image.fromarray(make_pixels(9, 40, 20))])
    assert probe((tmp_path / "b.gif").read_bytes()).animated
    image.convert("CMYK").save(tmp_path / "c.jpg")
    assert probe(tmp_path / "c.jpg").mode == "CMYK"
    whole = (tmp_path / "a.jpg").read_bytes()
    assert probe(whole[: len(whole) - 50]).width == 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_cut_and_damaged_images_are_not_stored(kind: str) -> None:
    whole = by_pillow(make_pixels(2, 64, 48), kind)
    assert check_content(whole).format == kind
    for end in (0, 1, 10, len(whole) // 2, len(whole) - 12):
        with pytest.raises(UnreadableImageError):
            check_content(whole[:end])
    for junk in (b"", b"not an image", bytes(200)):
        with pytest.raises(UnreadableImageError):
            check_content(junk)


def test_a_png_with_a_wrong_checksum_is_seen() -> None:
    whole = bytearray(by_pillow(make_pixels(2, 64, 48), "PNG"))
    whole[-20] ^= 1
    with pytest.raises(UnreadableImageError):
        check_content(bytes(whole))


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = by_pillow(np.zeros((300, 300), np.uint8), "PNG")
    monkeypatch.setattr(images, "LIMITS", formats.Limits(pixels=1000))
    with pytest.raises(TooLargeImageError, match="has 300 x 300 pixels, over the limit of 1,000"):
        probe(whole)


@given(st.binary(max_size=200))
def test_any_bytes_give_an_image_or_one_kind_of_error(data: bytes) -> None:
    for start in (b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\x00\x00\x00WEBPVP8 ", b"GIF89a", b"BM"):
        try:
            check_content(start + data)
        except UnreadableImageError:
            continue
