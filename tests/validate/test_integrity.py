"""Checks of an image and its facts: every format and kind of damage, compared with Pillow."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from validate_images import encoded, make_image

from phi3v_data.media import formats, images, integrity
from phi3v_data.media.images import probe
from phi3v_data.media.integrity import check_image, check_images, rgb_digest


def look(path: Path, *, pixels: bool = True) -> tuple[dict[str, Any], dict[int, str]]:
    """Facts by name and findings by flag."""
    facts, findings = check_image(path, pixels=pixels)
    return {name: facts[name].tolist() for name in integrity.FACTS.names or ()}, dict(findings)


def saved(tmp_path: Path, data: bytes, name: str = "a.png") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (333, 77), (40, 700)])
@pytest.mark.parametrize(
    ("name", "fmt", "mode", "options"),
    [
        ("a.jpg", "JPEG", "RGB", {}),
        ("a.jpeg", "JPEG", "L", {}),
        ("a.jpg", "JPEG", "RGB", {"progressive": True}),
        ("a.png", "PNG", "RGB", {}),
        ("a.png", "PNG", "RGBA", {}),
        ("a.png", "PNG", "P", {}),
        ("a.png", "PNG", "1", {}),
        ("a.png", "PNG", "LA", {}),
        ("a.webp", "WEBP", "RGB", {}),
        ("a.gif", "GIF", "P", {}),
        ("a.bmp", "BMP", "RGB", {}),
        ("a.tif", "TIFF", "RGB", {}),
    ],
)
def test_a_valid_image_has_its_size_and_no_findings(
    tmp_path: Path, pixels: bool, size: tuple[int, int], name: str, fmt: str, mode: str, options: dict[str, Any]
) -> None:
    path = saved(tmp_path, encoded(make_image(1, size, mode), fmt, **options), name)
    facts, findings = look(path, pixels=pixels)
    assert findings == {}
    assert (facts["width"], facts["height"]) == size == (probe(path).width, probe(path).height)
    assert bool(facts["flags"] & integrity.DECODED) is pixels
    assert bool(facts["flags"] & integrity.JPEG) is (fmt == "JPEG")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7, 0.97])
def test_a_cut_file_is_found(tmp_path: Path, fmt: str, keep: float) -> None:
    data = encoded(make_image(1, (200, 150)), fmt)
    path = saved(tmp_path, data[: int(len(data) * keep)], f"a.{'jpg' if fmt == 'JPEG' else fmt.lower()}")
    assert integrity.UNREADABLE in look(path)[1]


def test_damage_that_pillow_passes_over(tmp_path: Path) -> None:
    """A JPEG with a stretch of zeros, one cut just before its end, a PNG with a flipped bit behind its pixels."""
    data = bytearray(encoded(make_image(1, (400, 300)), "JPEG", quality=95))
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    zeroed = saved(tmp_path, bytes(data), "zeroed.jpg")
    Image.open(zeroed).load()
    assert "damaged" in look(zeroed)[1][integrity.UNREADABLE]

    whole = encoded(make_image(1), "PNG")
    note = b"tEXtcomment\0hello"
    chunk = struct.pack(">I", len(note) - 4) + note + struct.pack(">I", zlib.crc32(note) ^ 1)
    wrong = saved(tmp_path, whole[:-12] + chunk + whole[-12:], "wrong.png")
    Image.open(wrong).load()
    assert "tEXt" in look(wrong)[1][integrity.UNREADABLE]


@pytest.mark.parametrize("data", [b"", b"x", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"GIF89a", b"RIFF" * 9])
@pytest.mark.parametrize("pixels", [True, False])
def test_files_that_are_not_images(tmp_path: Path, data: bytes, pixels: bool) -> None:
    assert integrity.UNREADABLE in look(saved(tmp_path, data, "a.bin"), pixels=pixels)[1]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in look(tmp_path / "a.png")[1][integrity.UNREADABLE]
    assert rgb_digest(tmp_path / "a.png") == b""


@pytest.mark.parametrize("pixels", [True, False])
def test_findings_of_valid_images(tmp_path: Path, pixels: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    wide = Image.fromarray(np.full((20, 30), 40_000, np.uint16))
    cases = {
        "a.jpg": (encoded(make_image(1), "PNG"), integrity.MISMATCH),
        "b.png": (encoded(make_image(1), "JPEG"), integrity.MISMATCH),
        "c.jpg": (encoded(make_image(1, mode="CMYK"), "JPEG"), integrity.MODE),
        "d.png": (encoded(wide, "PNG"), integrity.MODE),
        "e.tif": (encoded(make_image(1).convert("F"), "TIFF"), integrity.MODE),
        "f.jpg": (encoded(make_image(1), "JPEG", exif=exif), integrity.ORIENTATION),
        "g.png": (encoded(make_image(1), "PNG", exif=exif), integrity.ORIENTATION),
        "h.webp": (encoded(make_image(1), "WEBP", exif=exif), integrity.ORIENTATION),
        "i.gif": (_animated("GIF"), integrity.ANIMATED),
        "j.png": (_animated("PNG"), integrity.ANIMATED),
        "k.webp": (_animated("WEBP"), integrity.ANIMATED),
        "l.tif": (_animated("TIFF"), integrity.ANIMATED),
    }
    for name, (data, flag) in cases.items():
        facts, findings = look(saved(tmp_path, data, name), pixels=pixels)
        assert list(findings) == [flag], name
        assert facts["width"], name


def _animated(fmt: str) -> bytes:
    frames = [make_image(n, (40, 30)) for n in range(3)]
    return encoded(frames[0], fmt, save_all=True, append_images=frames[1:])


def test_a_damaged_later_frame_is_found(tmp_path: Path) -> None:
    data = bytearray(_animated("TIFF"))
    path = saved(tmp_path, bytes(data[: len(data) - 200]), "a.tif")
    assert integrity.UNREADABLE in look(path)[1]


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
@pytest.mark.parametrize("pixels", [True, False])
def test_a_bomb_is_not_decoded(tmp_path: Path, fmt: str, pixels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LIMITS", formats.Limits(pixels=1000))
    path = saved(tmp_path, encoded(make_image(1, (64, 48)), fmt), "a.jpg" if fmt == "JPEG" else "a.png")
    facts, findings = look(path, pixels=pixels)
    assert list(findings) == [integrity.TOO_LARGE]
    assert not facts["flags"] & integrity.DECODED


def test_digests_tell_pixels_not_files(tmp_path: Path) -> None:
    image = make_image(1, (90, 60))
    a = saved(tmp_path, encoded(image, "PNG"), "a.png")
    b = saved(tmp_path, encoded(image, "PNG", compress_level=1), "b.png")
    c = saved(tmp_path, encoded(image, "BMP"), "c.bmp")
    d = saved(tmp_path, encoded(image.transpose(Image.Transpose.TRANSPOSE), "PNG"), "d.png")
    palette = image.quantize(8)
    e, f = saved(tmp_path, encoded(palette, "PNG"), "e.png"), saved(tmp_path, encoded(palette.convert("RGB")), "f.png")
    digest = {path: look(path)[0]["pixels"] for path in (a, b, c, d, e, f)}
    assert digest[a] == digest[b] == digest[c] != digest[d]
    assert digest[e] == digest[f] != digest[a]
    assert rgb_digest(a) == rgb_digest(c) != rgb_digest(d)

    plain = encoded(image, "JPEG", quality=80)
    comment = b"\xff\xfe\x00\x07hello"
    g, h = saved(tmp_path, plain, "g.jpg"), saved(tmp_path, plain[:2] + comment + plain[2:], "h.jpg")
    assert look(g)[0]["pixels"] == look(h)[0]["pixels"]
    assert rgb_digest(g) == rgb_digest(h)


def test_the_difference_hash_stays_near_under_compression(tmp_path: Path) -> None:
    for seed in range(20):
        image = make_image(seed, (320, 240))
        variants = [
            saved(tmp_path, encoded(image, "PNG"), f"{seed}.png"),
            saved(tmp_path, encoded(image, "JPEG", quality=85), f"{seed}.jpg"),
            saved(tmp_path, encoded(image, "JPEG", quality=60), f"{seed}b.jpg"),
            saved(tmp_path, encoded(image.resize((200, 150)), "PNG"), f"{seed}c.png"),
        ]
        hashes = [look(path)[0]["dhash"] for path in variants]
        assert max((hashes[0] ^ other).bit_count() for other in hashes[1:]) <= 4


def test_each_image_of_many_has_its_own_difference_hash(tmp_path: Path) -> None:
    rising, falling = [0, 20, 40, 60, 80, 100, 120, 140, 160], [160, 140, 120, 100, 80, 60, 40, 20, 0]
    one_step = [10, 10, 10, 10, 10, 10, 10, 10, 90]
    names = []
    for name, rows in (
        ("first.png", [rising] + [falling] * 7),
        ("last.bmp", [falling] * 7 + [one_step]),
        ("flat.png", [[7] * 8 + [18]] * 8),
        ("steps.png", [one_step, rising] * 4),
    ):
        Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / name)
        names.append(name)
    facts, _ = check_images(str(tmp_path), ["no.png", *names], pixels=True)
    assert [f"{value:016x}" for value in facts["dhash"].tolist()] == [
        "0000000000000000",
        "ff00000000000000",
        "0000000000000001",
        "0101010101010101",
        "01ff01ff01ff01ff",
    ]
    assert (facts["flags"] & integrity.FLAT > 0).tolist() == [False, False, False, True, False]
    assert len({tuple(each) for each in facts["pixels"].tolist()}) == 5
    assert facts["pixels"][0].tolist() == [0, 0]


def test_an_even_image_is_marked_flat(tmp_path: Path) -> None:
    assert look(saved(tmp_path, encoded(Image.new("RGB", (64, 64), "white"))))[0]["flags"] & integrity.FLAT
    assert not look(saved(tmp_path, encoded(make_image(1))))[0]["flags"] & integrity.FLAT


def test_many_files_in_one_table(tmp_path: Path) -> None:
    saved(tmp_path, encoded(make_image(1)), "a.png")
    saved(tmp_path, b"", "b.png")
    facts, details = check_images(str(tmp_path), ["a.png", "b.png", "c.png"], pixels=True)
    assert facts["width"].tolist() == [64, 0, 0]
    assert [(position, flag) for position, flag, _ in details] == [(1, integrity.UNREADABLE), (2, integrity.UNREADABLE)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_random_damage_never_raises(tmp_path: Path, fmt: str) -> None:
    data = encoded(make_image(1, (60, 50)), fmt)
    random = np.random.default_rng(5)
    for _ in range(150):
        broken = bytearray(data)
        for position in random.integers(0, len(data), 4):
            broken[position] = random.integers(0, 256)
        path = saved(tmp_path, bytes(broken), "a.bin")
        look(path)
        look(path, pixels=False)
